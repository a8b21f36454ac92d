"""Latents to frames and back: streaming, tiles, exactness, and one file per family of VAEs."""
