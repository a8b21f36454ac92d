"""Every optimization behind one front door: `apply`. Knows torch and diffusers; never ComfyUI, never pipelines/."""
