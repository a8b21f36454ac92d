"""The families that are read in parts, in one table. Where several fit, the first is taken."""

from __future__ import annotations

from ..component import (
    AUDIO_INPUT,
    DIFFUSION_MODEL,
    ENCODER_INPUT,
    TEXT_ENCODER,
    UNREADABLE,
    VAE,
    Component,
    PartsFamily,
    Shapes,
    input_of,
)
from . import (
    chroma,
    flux,
    flux2,
    flux3,
    krea2,
    ltx2,
    minimax_h3,
    qwenimage,
    qwenimage21,
    sd3,
    sdxl,
    wan,
    zimage,
)
from .not_read import why_not_read

FAMILIES: tuple[PartsFamily, ...] = (
    *flux.FAMILIES,
    *flux2.FAMILIES,
    *chroma.FAMILIES,
    *sdxl.FAMILIES,
    *sd3.FAMILIES,
    *zimage.FAMILIES,
    *qwenimage.FAMILIES,
    *krea2.FAMILIES,
    *wan.FAMILIES,
    *ltx2.FAMILIES,
    *qwenimage21.FAMILIES,
    *flux3.FAMILIES,
    *minimax_h3.FAMILIES,
)
TITLES = (
    "FLUX.1 (dev, schnell, Kontext, Fill), FLUX.2-klein, Chroma, SDXL, SD 3 and 3.5, Z-Image, Qwen-Image and its Edit "
    "models, Krea 2, Wan 2.1 and 2.2 (14B, 5B, 1.3B), LTX-2 and 2.3, "
    "Qwen-Image-2.1, FLUX.3, MiniMax-H3"
)


__all__ = ["FAMILIES", "TITLES", "as_other_part", "family_of_file", "kind_of_shapes", "why_not_read"]


def family_of_file(shapes: Shapes, name: str) -> PartsFamily | None:
    """The family of a diffusion model with these tensors, in a file of that name; None for any other."""
    return next((family for family in FAMILIES if family.told(shapes, name)), None)


def kind_of_shapes(shapes: Shapes, name: str) -> str:
    """What a file with these tensors may be: a diffusion model, a text encoder or a VAE of any family; "" for none,
    and `UNREADABLE` for a diffusion model that is known and not read."""
    if family_of_file(shapes, name) is not None:
        return DIFFUSION_MODEL
    if why_not_read(shapes):
        return UNREADABLE
    for kind, given_as in ((TEXT_ENCODER, ENCODER_INPUT), (VAE, "vae"), (VAE, AUDIO_INPUT)):
        if any(component.told_by(shapes) for component in _components(given_as)):
            return kind
    return ""


def as_other_part(shapes: Shapes) -> tuple[str, str, str] | None:
    """What a file is that is a part of models and no diffusion model; None where it is none.

    Returns:
        its title, of several with the same names all; the input that it is given by; what it goes with.
    """
    for given_as in (ENCODER_INPUT, "vae", AUDIO_INPUT):
        found = {
            family.components[family.diffusion_model].title: component.title
            for family in FAMILIES
            for name, component in family.components.items()
            if input_of(name) == given_as and component.told_by(shapes)
        }
        if found:
            return " or ".join(dict.fromkeys(found.values())), given_as, ", ".join(found)
    return None


def _components(given_as: str) -> list[Component]:
    return [
        component for family in FAMILIES for name, component in family.components.items() if input_of(name) == given_as
    ]
