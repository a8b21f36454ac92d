"""Find, load, cache and call diffusers pipelines. May import optimizations/ and vae/; never nodes/ or ComfyUI."""
