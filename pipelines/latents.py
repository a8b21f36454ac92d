"""Latents between diffusers' conventions and ComfyUI's.

ComfyUI's LATENT is what the VAE takes (scaling and shift undone), except for Flux.2's patches, LTX-2's tokens and
MiniMax-H3's clips, which stay normalised as the denoiser has them: ComfyUI's decode applies the VAE's statistics. The
arithmetic here is, operation by operation, that of the diffusers pipelines, so that a decode through a LATENT equals
the pipeline's own picture bit for bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..optimizations.components import decode_dtype, has_time_axis
from .families import Family

if TYPE_CHECKING:
    import torch

    from .types import SampleRequest

NORMALIZED_LAYOUTS = ("patches", "tokens", "normalized")
"""`Family.layout` of the families whose ComfyUI latent stays normalised."""


def to_comfy(native: torch.Tensor, family: Family, vae: Any, width: int, height: int) -> torch.Tensor:
    """A pipeline's latent in ComfyUI's convention, float32, on the device where it is.

    Args:
        native: what the denoising loop ends with, in the family's `layout`.
        family: a known family (`family.known`).
        vae: the pipeline's VAE; only its configuration and dtype are used.
        width, height: of the picture in pixels; a packed latent does not know its own shape.

    Returns:
        [B, C, h, w], or [B, C, T, h, w] for the families whose VAE has a time axis (Qwen-Image with T = 1).
    """
    latent = unpack(native, family, width, height)
    if family.layout in NORMALIZED_LAYOUTS:
        return latent.float()
    latent = latent.to(decode_dtype(vae))
    mean, std = _statistics(vae, latent)
    if mean is None:
        latent = latent / vae.config.scaling_factor
        if vae.config.get("shift_factor") is not None:
            latent = latent + vae.config.shift_factor
    elif latent.ndim == 5:
        latent = latent / (1.0 / std) + mean
    else:
        latent = latent * std / vae.config.scaling_factor + mean
    return latent.float()


def from_comfy(latent: torch.Tensor, family: Family, vae: Any) -> torch.Tensor:
    """The inverse of `to_comfy`, still in the shape [B, C, h, w] or [B, C, T, h, w]; `pack` gives the layout.

    Raises:
        InputError: the latent has another number of channels than the family's.
    """
    check_latent(latent, family)
    latent = latent.float()
    if latent.ndim == 4 and has_time_axis(vae):
        latent = latent.unsqueeze(2)
    if family.layout in NORMALIZED_LAYOUTS:
        return latent
    mean, std = _statistics(vae, latent)
    if mean is None:
        shift = vae.config.get("shift_factor")
        return (latent - (shift or 0.0)) * vae.config.scaling_factor
    scaling = 1.0 if latent.ndim == 5 else vae.config.scaling_factor
    return (latent - mean) * scaling / std


def of_result(native: torch.Tensor, family: Family, request: SampleRequest) -> torch.Tensor:
    """A pipeline's latent without what is there for the run alone: behind the clip's own tokens those of LTX-2's
    keyframes, in front of the clip's own frames those of VACE's reference pictures.

    Args:
        request: ready, with the size of the result.
    """
    if family.images_in_front and native.ndim == 5:
        return native[:, :, -(1 + ((request.num_frames or 1) - 1) // family.temporal_stride) :]
    if family.layout != "tokens" or native.ndim != 3:
        return native
    cells = ((request.height or 0) // family.latent_stride) * ((request.width or 0) // family.latent_stride)
    return native[:, : cells * (1 + ((request.num_frames or 1) - 1) // family.temporal_stride)]


def denormalize(latent: torch.Tensor, family: Family, vae: Any) -> torch.Tensor:
    """ComfyUI's latent as `vae.decode` takes it.

    Args:
        latent: [B, 128, h, w] patches, which become [B, 32, 2h, 2w]; or [B, C, T, h, w].
    """
    if family.layout == "normalized":
        mean, std = _statistics(vae, latent)
        return latent * std + mean
    if family.layout == "tokens":
        mean, std = _channel_statistics(vae, latent)
        return latent * std / vae.config.scaling_factor + mean
    mean, std = _patch_statistics(vae, latent)
    latent = latent * std + mean
    batch, channels, height, width = latent.shape
    latent = latent.reshape(batch, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return latent.reshape(batch, channels // 4, height * 2, width * 2)


def normalize(latent: torch.Tensor, family: Family, vae: Any) -> torch.Tensor:
    """The inverse of `denormalize`: what `vae.encode` gives as ComfyUI's latent."""
    if family.layout == "normalized":
        mean, std = _statistics(vae, latent)
        return (latent - mean) / std
    if family.layout == "tokens":
        mean, std = _channel_statistics(vae, latent)
        return (latent - mean) * vae.config.scaling_factor / std
    batch, channels, height, width = latent.shape
    latent = latent.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    latent = latent.reshape(batch, channels * 4, height // 2, width // 2)
    mean, std = _patch_statistics(vae, latent)
    return (latent - mean) / std


def check_kind(name: str, latent: torch.Tensor) -> None:
    """Raise InputError for a latent of whole numbers. Eight bits with a floating point are numbers like others."""
    if not latent.is_floating_point():
        kind = str(latent.dtype).removeprefix("torch.")
        reason = "a latent holds numbers with a floating point"
        raise InputError(name, kind, reason, "give the latent of a sampler or of an encode as it is")


def check_latent(latent: torch.Tensor, family: Family) -> None:
    """Raise InputError unless the latent has the form of the family's latents, and numbers with a floating point."""
    shape = list(latent.shape)
    if latent.ndim not in (4, 5) or 0 in shape:
        reason = "a latent is [batch, channels, (frames,) height, width]"
        raise InputError("latent", f"shape {shape}", reason, "give the latent of a sampler or of an encode")
    check_kind("latent", latent)
    # Qwen-Image's VAE is one of clips, and so are its latents, one frame long.
    if (
        latent.ndim == 5
        and latent.shape[2] > 1
        and family.known
        and not family.video
        and family.comfy_format != "Wan21"
    ):
        reason = f"it holds a clip of {latent.shape[2]} latent frames, and {family.name} makes single images"
        raise InputError("latent", f"shape {shape}", reason, "use the model that the latent comes from")
    if family.video and family.frame_rest > 1 and latent.ndim == 5:
        rest, count = family.frame_rest, latent.shape[2]
        if count < rest + 2 or count % rest != 2:
            reason = f"it has {count} latent frames, and {family.name}'s VAE decodes {rest}n + 2, at least {rest + 2}"
            raise InputError("latent", f"shape {shape}", reason, "use the latent of a whole clip of this kind of model")
    if family.latent_channels and latent.shape[1] != family.latent_channels:
        reason = f"it has {latent.shape[1]} channels, but {family.name} latents have {family.latent_channels}"
        raise InputError("latent", f"shape {shape}", reason, "use a latent of the same kind of model")


def refuse_own_layout(family: Family, name: str, value: Any, cure: str) -> None:
    """Raise InputError where nothing here decodes the family's latents, so that a latent alone would be of no use.

    Args:
        name, value: the input that asks for a latent, or gives one.
    """
    if not family.known:
        reason = f"how {family.name} scales its latents is not known here, so none can be decoded or made of pixels"
        raise InputError(name, value, reason, cure)


def check_start(family: Family, request: SampleRequest) -> None:
    """Refuse a latent to start from, or to keep a part of, that is no latent of the result.

    Args:
        request: with such a latent, of the family's form.

    Raises:
        InputError: it holds what is no number, or another size or length is asked for.
    """
    from ..fallback import all_finite

    latent: Any = request.latent
    rows, columns = (edge * family.latent_stride for edge in latent.shape[-2:])
    frames = family.clip_frames(latent.shape[2]) if family.video and latent.ndim == 5 else None
    for name, held in (("width", columns), ("height", rows), ("num_frames", frames)):
        asked = getattr(request, name)
        if None not in (held, asked) and asked != held:
            reason = f"the latent that is given is one of {held}, and no latent is scaled or cut"
            raise InputError(name, asked, reason, f"use {held}, or leave it out")
    if not all_finite(latent):
        reason = "it holds NaN or infinite values, and so would all that is made of it"
        raise InputError("latent", "NaN", reason, "make it anew")


def unpack(native: torch.Tensor, family: Family, width: int, height: int) -> torch.Tensor:
    """From the family's layout to [B, C, h, w] (or [B, C, T, h, w])."""
    if family.layout in ("plain", "video"):
        return native
    if family.layout == "normalized" and native.ndim < 5:
        return _from_rows(native, family, width, height)
    if native.ndim == 5:  # image-to-video steps the frames after the first one, unpacked
        return native
    if native.ndim == 4:  # modular blocks end with it unpacked
        return native.unsqueeze(2) if family.comfy_format == "Wan21" else native
    batch, _, channels = native.shape
    if family.layout == "tokens":
        rows, columns = height // family.latent_stride, width // family.latent_stride
        return native.transpose(1, 2).reshape(batch, channels, -1, rows, columns)
    # Two latent cells a side; a VAE need not be of the family's own stride.
    edge = math.isqrt(height * width // native.shape[1])
    rows, columns = height // edge, width // edge
    if family.layout == "patches":
        return native.permute(0, 2, 1).reshape(batch, channels, rows, columns)
    latent = native.view(batch, rows, columns, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    latent = latent.reshape(batch, channels // 4, rows * 2, columns * 2)
    return latent.unsqueeze(2) if family.comfy_format == "Wan21" else latent


def pack(latent: torch.Tensor, family: Family) -> torch.Tensor:
    """The inverse of `unpack`."""
    if family.layout in ("plain", "video"):
        return latent
    if family.layout == "normalized":
        return _as_rows(latent, family)
    if family.layout == "tokens":
        return latent.flatten(2).transpose(1, 2)
    if latent.ndim == 5:
        latent = latent.squeeze(2)
    batch, channels, height, width = latent.shape
    if family.layout == "patches":
        return latent.reshape(batch, channels, height * width).permute(0, 2, 1)
    latent = latent.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return latent.reshape(batch, (height // 2) * (width // 2), channels * 4)


def _from_rows(rows: torch.Tensor, family: Family, width: int, height: int) -> torch.Tensor:
    """Rows of patches, [N, C * p * p] or [B, N, C * p * p] frame by frame, to [B, C, T, h, w]."""
    rows = rows if rows.ndim == 3 else rows.unsqueeze(0)
    channels, edge = family.latent_channels, family.row_patch
    lines, columns = (size // (family.latent_stride * edge) for size in (height, width))
    cells = rows.reshape(rows.shape[0], -1, lines, columns, channels, edge, edge).permute(0, 4, 1, 2, 5, 3, 6)
    return cells.reshape(rows.shape[0], channels, -1, lines * edge, columns * edge)


def _as_rows(latent: torch.Tensor, family: Family) -> torch.Tensor:
    """The inverse of `_from_rows`, with a batch in front."""
    batch, channels, frames, height, width = latent.shape
    edge = family.row_patch
    cells = latent.reshape(batch, channels, frames, height // edge, edge, width // edge, edge)
    return cells.permute(0, 2, 3, 5, 1, 4, 6).reshape(batch, -1, channels * edge**2)


def _statistics(vae: Any, latent: torch.Tensor) -> tuple[Any, Any]:
    """Per-channel mean and deviation of the latents as the VAE's config states them; (None, None) without."""
    import torch

    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return None, None
    shape = (1, -1) + (1,) * (latent.ndim - 2)
    device, dtype = latent.device, latent.dtype
    # Without blocking where that is safe: otherwise every preview would wait for the card.
    at_once = device.type == "cuda"
    mean, std = (torch.tensor(v).view(shape).to(dtype).to(device, non_blocking=at_once) for v in (mean, std))
    return mean, std


def _channel_statistics(vae: Any, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (statistic.view(1, -1, 1, 1, 1) for statistic in (vae.latents_mean, vae.latents_std))
    return mean.to(latent.device, latent.dtype), std.to(latent.device, latent.dtype)


def _patch_statistics(vae: Any, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(latent.device, latent.dtype)
    variance = vae.bn.running_var.view(1, -1, 1, 1)
    return mean, torch.sqrt(variance + vae.config.batch_norm_eps).to(latent.device, latent.dtype)
