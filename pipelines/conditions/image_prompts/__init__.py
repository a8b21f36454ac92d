"""Pictures as prompts: IP-Adapters and Flux Redux, their files, and what a run has beside the pipeline for them."""
