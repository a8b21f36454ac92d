"""Modular Diffusers: pipelines made of blocks, found, described and run by what their blocks say of themselves."""
