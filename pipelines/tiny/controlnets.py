"""The embedded tiny control models, each for the tiny pipeline of its family: random weights, none of them at zero."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from .build import build, spread_weights

if TYPE_CHECKING:
    import torch

CONTROLNET_CLASSES = {
    "flux": "FluxControlNetModel",
    "sdxl": "ControlNetModel",
    "sd3": "SD3ControlNetModel",
    "qwenimage": "QwenImageControlNetModel",
    "zimage": "ZImageControlNetModel",
}
"""Tiny family -> class of its control model in diffusers."""


def controlnet_class(family: str) -> str:
    """The class of a family's tiny control model. Raises InputError where there is none, or diffusers has no such."""
    import diffusers

    name = CONTROLNET_CLASSES.get(family)
    if name is None:
        cure = f"choose one of: {', '.join(f'tiny:{family}' for family in CONTROLNET_CLASSES)}"
        raise InputError("controlnet", f"tiny:{family}", "there is no embedded control model of that name", cure)
    if not hasattr(diffusers, name):
        reason = f"diffusers {diffusers.__version__} has no {name}"
        raise InputError("controlnet", f"tiny:{family}", reason, "update diffusers")
    return name


def build_controlnet(family: str, dtype: torch.dtype | None = None) -> Any:
    """Build the tiny control model of a family on the CPU, in evaluation mode; the same in every process."""
    import diffusers
    import torch

    made = getattr(diffusers, controlnet_class(family))
    pipeline: Any = build(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{family} control".encode()))
        if family == "sdxl":
            model = made.from_unet(
                pipeline.unet, conditioning_embedding_out_channels=(16, 16, 16, 16), load_weights_from_unet=False
            )
        elif family == "zimage":
            config = pipeline.transformer.config
            names = ("dim", "n_refiner_layers", "n_heads", "n_kv_heads")
            model = made(
                **{name: config[name] for name in names},
                control_layers_places=[0],
                control_refiner_layers_places=[0],
                control_in_dim=16,
            )
        else:
            config = {key: value for key, value in pipeline.transformer.config.items() if not key.startswith("_")}
            config |= {"num_layers": 1, **({"num_single_layers": 1} if family == "flux" else {})}
            if family == "sd3":
                config["dual_attention_layers"] = ()
            model = made.from_config(config)
        spread_weights(model)
        model.eval().requires_grad_(False)
    return model if dtype in (None, torch.float32) else model.to(dtype=dtype)
