"""Adapter files: what the keys of a file mean, which layers they name, and what they add to them. Nothing is loaded."""
