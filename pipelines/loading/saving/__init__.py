"""Models as diffusers folders: what is loaded from other files, written out."""
