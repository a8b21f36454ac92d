"""How ComfyUI is started: what its log says, what that advises, the script that does so. Knows no torch."""
