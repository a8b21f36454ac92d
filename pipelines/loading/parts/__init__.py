"""Models in parts, as ComfyUI keeps them: a diffusion model, its text encoders and its VAE, each in its own file."""

from .checkpoint import PUBLISHED, write_configurations
from .choose import choose_audio_vae, choose_second_expert, choose_text_encoders, choose_vae
from .component import (
    AUDIO_INPUT,
    DIFFUSION_MODEL,
    ENCODER_INPUT,
    MODEL_INPUT,
    TEXT_ENCODER,
    UNREADABLE,
    VAE,
    input_of,
)
from .embedded import NAME as EMBEDDED_NAME
from .embedded import embedded_parts
from .fit import kind_of_part
from .gguf import is_gguf
from .plan import (
    NONE,
    absent_vae,
    denoiser_of_parts,
    family_of_parts,
    left_out,
    locate_parts,
)
from .read import check_quantized, read_parts
from .save import bytes_of_parts, write_parts

__all__ = [
    "AUDIO_INPUT",
    "DIFFUSION_MODEL",
    "EMBEDDED_NAME",
    "ENCODER_INPUT",
    "MODEL_INPUT",
    "NONE",
    "PUBLISHED",
    "TEXT_ENCODER",
    "UNREADABLE",
    "VAE",
    "absent_vae",
    "bytes_of_parts",
    "check_quantized",
    "choose_audio_vae",
    "choose_second_expert",
    "choose_text_encoders",
    "choose_vae",
    "denoiser_of_parts",
    "embedded_parts",
    "family_of_parts",
    "input_of",
    "is_gguf",
    "kind_of_part",
    "left_out",
    "locate_parts",
    "read_parts",
    "write_configurations",
    "write_parts",
]
