"""Texts that ComfyUI's own encoders encoded: CONDITIONING as the sampler reads it, and a tiny encoder to try graphs."""
