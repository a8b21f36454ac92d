"""Models in parts, as ComfyUI keeps them: a diffusion model, its text encoders and its VAE, each in its own file."""

from .plan import family_of_parts, kind_of_part, locate_parts
from .read import read_parts

__all__ = ["family_of_parts", "kind_of_part", "locate_parts", "read_parts"]
