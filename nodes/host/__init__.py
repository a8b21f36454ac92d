"""ComfyUI as the nodes need it: memory management, progress, folders, and its own VAE objects."""
