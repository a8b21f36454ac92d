"""Modular Diffusers: pipelines as blocks. Reads nothing of the loading but files; what the blocks say of themselves is enough."""
