"""ComfyUI's VAE objects for tests: full-size ones with random weights, and ones around small networks."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch

from fastdiffusers.callbacks import SILENT, Callbacks

SIZES: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
"""The full-size autoencoder of pictures, which ComfyUI's loader insists on."""


class LocalModel(torch.nn.Module):
    """A VAE network that looks at one latent cell at a time, so that tiles, however blended, must give the whole."""

    def __init__(self, most_cells: int = 1 << 30) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.most_cells = most_cells
        self.calls: list[tuple[int, ...]] = []

    def _check(self, cells: int, shape: torch.Size) -> None:
        self.calls.append(tuple(shape))
        if cells > self.most_cells:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        self._check(z[0, 0].numel(), z.shape)
        if z.ndim == 5:
            z = z.repeat_interleave(4, dim=2)[:, :, 3:]
        return z[:, :3].repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self._check(x[0, 0].numel() // 64, x.shape)
        x = torch.cat((x, x[:, :1]), dim=1)
        if x.ndim == 5:
            return torch.nn.functional.avg_pool3d(x, (1, 8, 8))[:, :, ::4]
        return torch.nn.functional.avg_pool2d(x, 8)


@functools.cache
@torch.inference_mode(mode=False)  # whoever asks first: others need to load the weights into a model
def autoencoder(latent_channels: int) -> Any:
    """One full-size AutoencoderKL for all families with that many latent channels; SDXL's have 4."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    quantizers = latent_channels == 4  # as the released ones: SDXL has them, its successors do not
    options = {"use_quant_conv": quantizers, "use_post_quant_conv": quantizers}
    return AutoencoderKL(**SIZES, latent_channels=latent_channels, **options).eval()


@functools.cache
@torch.inference_mode(mode=False)
def wan_weights() -> dict[str, torch.Tensor]:
    """Random weights of a full-size Wan autoencoder under the keys of its own release."""
    import comfy.ldm.wan.vae

    torch.manual_seed(0)
    network = comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True])
    for name, parameter in network.named_parameters():  # ComfyUI leaves the weights of a new network unset
        if name.endswith("gamma"):
            parameter.data.fill_(1)
        elif parameter.ndim > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.data.zero_()
    return dict(network.state_dict())


def image_vae(core: Any) -> Any:
    """ComfyUI's VAE object around a full-size, randomly initialised SDXL autoencoder."""
    return core.sd.VAE(sd=autoencoder(4).state_dict())


def video_vae(core: Any) -> Any:
    """ComfyUI's VAE object around a full-size, randomly initialised Wan autoencoder."""
    return core.sd.VAE(sd=dict(wan_weights()))


def with_network(vae: Any, model: torch.nn.Module) -> Any:
    """The same object around another network, for latents of 4 channels."""
    import comfy.model_patcher

    fake = copy.copy(vae)
    fake.first_stage_model = model
    fake.latent_channels = 4
    fake.patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    return fake


def small_wan(video_vae: Any, generation: str, **sizes: int) -> Any:
    """ComfyUI's VAE object around a small Wan network of either generation."""
    import comfy.ldm.wan.vae
    import comfy.ldm.wan.vae2_2

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "dim": 8,
        "z_dim": 4,
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
    } | sizes
    if generation == "wan 2.1":
        network = comfy.ldm.wan.vae.WanVAE(**shape)
    else:
        network = comfy.ldm.wan.vae2_2.WanVAE(**shape, dec_dim=8)
    for parameter in network.parameters():
        parameter.data.normal_(std=parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1)
    return with_network(video_vae, network.eval())


def decode(vae: Any, samples: torch.Tensor, callbacks: Callbacks = SILENT, **choices: Any) -> tuple[Any, Any]:
    from fastdiffusers.nodes.host import core_vae
    from fastdiffusers.nodes.vae_choices import VaeChoices

    return core_vae.decode(vae, samples, VaeChoices(**choices), callbacks)


def encode(vae: Any, pixels: torch.Tensor, callbacks: Callbacks = SILENT, **choices: Any) -> tuple[Any, Any]:
    from fastdiffusers.nodes.host import core_vae
    from fastdiffusers.nodes.vae_choices import VaeChoices

    return core_vae.encode(vae, pixels, VaeChoices(**choices), callbacks)
