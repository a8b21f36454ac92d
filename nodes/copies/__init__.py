"""Nodes that write a model to disk: quantized, or as a diffusers folder."""
