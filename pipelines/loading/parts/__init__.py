"""Models in parts, as ComfyUI keeps them: a diffusion model, its text encoders and its VAE, each in its own file."""

from .checkpoint import PUBLISHED, write_configurations
from .choose import choose_second_expert, choose_text_encoders, choose_vae
from .component import DIFFUSION_MODEL, TEXT_ENCODER, UNREADABLE, VAE
from .gguf import is_gguf
from .plan import family_of_parts, kind_of_part, locate_parts
from .read import read_parts

__all__ = [
    "DIFFUSION_MODEL",
    "PUBLISHED",
    "TEXT_ENCODER",
    "UNREADABLE",
    "VAE",
    "choose_second_expert",
    "choose_text_encoders",
    "choose_vae",
    "family_of_parts",
    "is_gguf",
    "kind_of_part",
    "locate_parts",
    "read_parts",
    "write_configurations",
]
