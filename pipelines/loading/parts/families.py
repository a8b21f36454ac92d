"""The families that are read in parts, in one table. Where several fit, the first is taken."""

from __future__ import annotations

from . import flux, flux2, qwenimage, wan, zimage
from .component import DIFFUSION_MODEL, TEXT_ENCODER, VAE, Component, PartsFamily, Shapes

FAMILIES: tuple[PartsFamily, ...] = (
    *flux.FAMILIES,
    *flux2.FAMILIES,
    *zimage.FAMILIES,
    *qwenimage.FAMILIES,
    *wan.FAMILIES,
)
TITLES = (
    "FLUX.1 (dev, schnell, Kontext), FLUX.2-klein, Z-Image, Qwen-Image and its Edit models, Wan 2.1 and 2.2 (14B, 1.3B)"
)


def family_of_file(shapes: Shapes, name: str) -> PartsFamily | None:
    """The family of a diffusion model with these tensors, in a file of that name; None for any other."""
    return next((family for family in FAMILIES if family.told(shapes, name)), None)


def kind_of_shapes(shapes: Shapes, name: str) -> str:
    """What a file with these tensors may be: a diffusion model, a text encoder or a VAE of any family; "" for none."""
    if family_of_file(shapes, name) is not None:
        return DIFFUSION_MODEL
    for kind, beginning in ((TEXT_ENCODER, "text_encoder"), (VAE, "vae")):
        if any(component.told(shapes) for component in _components(beginning)):
            return kind
    return ""


def _components(beginning: str) -> list[Component]:
    return [
        component for family in FAMILIES for name, component in family.components.items() if name.startswith(beginning)
    ]
