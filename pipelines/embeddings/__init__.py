"""Texts that ComfyUI's own encoders encoded: what a pipeline takes of them, by family, and what it refuses."""
