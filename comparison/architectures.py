"""Full-size architectures with random weights, built on the device: what they compute takes as long as the real models.

The denoiser and the VAE have the published sizes. The text encoders are the tiny embedded ones, padded to the published
number of tokens: their own time, a small part of a run, is not the real one's, and the results say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..pipelines import tiny
from ..pipelines.loading.devices import default_dtype
from ..pipelines.recognize import family_of
from ..pipelines.tiny import components
from ..pipelines.types import LoadedPipeline, LoadKey
from . import text_encoders

NOTE = (
    "random weights; denoiser and VAE in full size, text encoders tiny: their time is not the real model's; "
    "what a quantization or a step cache loses, in dB, is not that of trained weights, which can lose more"
)
SMALL_NOTE = "random weights in a small size: for looking at the benchmark itself, not for figures"


@dataclass(frozen=True)
class Architecture:
    """A model in its published size, and a small one of the same shape for machines without a GPU.

    Attributes:
        name: for tables and files.
        family: the tiny pipeline that gives everything but denoisers and VAE.
        build: (full size?, width of what text encoders give, ...) -> {component name: a module on the current default
            device}; without widths those of the tiny text encoders.
        encoders: the published text encoders, likewise.
        widths: of what they give.
    """

    name: str
    family: str
    build: Callable[..., dict[str, Any]]
    encoders: Callable[[], dict[str, Any]]
    widths: tuple[int, ...]

    def published(self) -> dict[str, Any]:
        """All components that have weights, in full size, on the current default device."""
        return {**self.encoders(), **self.build(True, *self.widths)}


def _flux(full: bool, text: int = components.WIDTH, pooled: int = components.WIDTH) -> dict[str, Any]:
    """FLUX.1-dev: 19 double and 38 single blocks of width 3072."""
    from diffusers import FluxTransformer2DModel

    size = {"num_layers": 19, "num_single_layers": 38} if full else {"num_layers": 2, "num_single_layers": 4}
    heads = {"num_attention_heads": 24 if full else 4, "attention_head_dim": 128}
    transformer = FluxTransformer2DModel(
        **size,
        **heads,
        in_channels=64,
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
        guidance_embeds=True,
        axes_dims_rope=(16, 56, 56),
    )
    return {"transformer": transformer, "vae": flux_vae(full)}


def flux_vae(full: bool) -> Any:
    """The image VAE of FLUX.1 and Z-Image, with 128 to 512 channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512) if full else (32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=32,
        sample_size=1024,
        scaling_factor=components.FLUX_SCALING,
        shift_factor=components.FLUX_SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _qwen_image(full: bool, text: int = components.WIDTH) -> dict[str, Any]:
    """Qwen-Image: 60 double blocks of width 3072; the Wan 2.1 VAE for pictures."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        num_layers=60 if full else 2,
        num_attention_heads=24 if full else 4,
        attention_head_dim=128,
        joint_attention_dim=text,
    )
    vae = AutoencoderKLQwenImage() if full else AutoencoderKLQwenImage(base_dim=16, num_res_blocks=1)
    return {"transformer": transformer, "vae": vae}


def _z_image(full: bool, text: int = components.WIDTH) -> dict[str, Any]:
    """Z-Image: 30 blocks and 2 + 2 refining ones of width 3840; the VAE of FLUX.1."""
    from diffusers import ZImageTransformer2DModel

    heads = 30 if full else 4
    transformer = ZImageTransformer2DModel(
        dim=128 * heads,
        n_heads=heads,
        n_kv_heads=heads,
        n_layers=30 if full else 2,
        n_refiner_layers=2 if full else 1,
        cap_feat_dim=text,
    )
    return {"transformer": transformer, "vae": flux_vae(full)}


def _wan22_i2v(full: bool, text: int = components.WIDTH) -> dict[str, Any]:
    """Wan 2.2 I2V A14B: two experts of 40 blocks, width 5120; the Wan 2.1 VAE."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    def expert() -> Any:
        size = {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
        small = {"num_attention_heads": 2, "ffn_dim": 512, "num_layers": 2}
        return WanTransformer3DModel(
            **(size if full else small),
            attention_head_dim=128,
            in_channels=36,
            out_channels=16,
            text_dim=text,
        )

    vae = AutoencoderKLWan() if full else AutoencoderKLWan(base_dim=16, num_res_blocks=1)
    return {"transformer": expert(), "transformer_2": expert(), "vae": vae}


FLUX_DEV = Architecture("FLUX.1-dev architecture", "flux-random", _flux, text_encoders.flux, (4096, 768))
QWEN_IMAGE = Architecture("Qwen-Image architecture", "qwenimage", _qwen_image, text_encoders.qwen_image, (3584,))
Z_IMAGE = Architecture("Z-Image architecture", "zimage", _z_image, text_encoders.z_image, (2560,))
WAN22_I2V = Architecture("Wan 2.2 I2V A14B architecture", "wan22-i2v", _wan22_i2v, text_encoders.wan, (4096,))
ARCHITECTURES = {"flux": FLUX_DEV, "zimage": Z_IMAGE, "qwenimage": QWEN_IMAGE, "wan-i2v": WAN22_I2V}
"""By the pipeline family that a preset is meant for."""


def build(architecture: Architecture, device: str, dtype: str, full: bool) -> LoadedPipeline:
    """Build the architecture as the cache would hold it after loading, so that `generate.run_loaded` can run it.

    Args:
        architecture: which.
        device: "cuda:0", "cpu".
        dtype: "bfloat16", ...
        full: in its published size; else in the small one.
    """
    key = LoadKey(architecture.name + ("" if full else ", small"), identity="random", dtype=dtype, device=device)
    small: Any = tiny.build(architecture.family, dtype=getattr(torch, dtype))
    with torch.random.fork_rng(), torch.device(device), default_dtype(getattr(torch, dtype)):
        torch.manual_seed(0)
        modules = architecture.build(full)
    for module in modules.values():
        module.eval().requires_grad_(False)
    pipeline: Any = type(small)(**{**small.components, **modules, **_settings(small)})
    pipeline.set_progress_bar_config(disable=True)
    pipeline.to(device)
    return LoadedPipeline(
        key, pipeline, family_of(pipeline), torch.device(device), getattr(torch, dtype), {"model": key.source}
    )


def _settings(pipeline: Any) -> dict[str, Any]:
    """What a pipeline was built with beside its components: the boundary between Wan's experts, say."""
    return {
        name: value
        for name, value in pipeline.config.items()
        if not name.startswith("_") and name not in pipeline.components and value is not None
    }
