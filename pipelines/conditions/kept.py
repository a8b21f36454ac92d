"""The latent of which a run keeps a part: the request's own, or its first picture's, brought to the loop's layout."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ...callbacks import Callbacks
from .. import latents
from ..decoding import pipeline_vae
from .blend import Blend, resized_to_latent
from .masks import blends, mask_of

if TYPE_CHECKING:
    import torch

    from ..types import LoadedPipeline, SampleRequest

Request = TypeVar("Request", bound="SampleRequest")


def with_kept_latent(loaded: LoadedPipeline, request: Request, callbacks: Callbacks) -> Request:
    """The request with its first picture encoded as its latent, where a mask is kept to by blending; else unchanged.

    Args:
        request: ready, with the size of the result.
    """
    if not blends(loaded.family, request) or request.latent is not None:
        return request
    picture = _resized(request.images[0][..., :3], request.height or 0, request.width or 0)
    return replace(request, latent=pipeline_vae.encode(loaded, picture[None], callbacks))


def blend_for(loaded: LoadedPipeline, request: SampleRequest) -> Blend | None:
    """What is kept through one call, None where nothing is.

    Args:
        request: from `with_kept_latent`.
    """
    condition = mask_of(request)
    if condition is None or request.latent is None or not blends(loaded.family, request):
        return None
    family = loaded.family
    native = latents.from_comfy(request.latent, family, loaded.vae)
    copies = -(-request.batch // native.shape[0])
    native = native.repeat(copies, *(1,) * (native.ndim - 1))[: request.batch]
    mask = resized_to_latent(condition.mask, tuple(native.shape), family.video)
    steps = request.steps or 0
    left_out = steps - min(int(steps * request.strength), steps)  # as the image-to-image forms of diffusers count them
    packed = latents.pack(native, family), latents.pack(mask, family)
    return Blend(*packed, from_noise=request.strength >= 1.0, left_out=left_out)


def _resized(picture: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A picture [H, W, 3] in another size, scaled as those that a pipeline is given are: Lanczos, in 8 bits."""
    if picture.shape[:2] == (rows, columns):
        return picture
    import numpy
    import torch
    from PIL.Image import Resampling, fromarray

    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    scaled = fromarray(pixels).resize((columns, rows), resample=Resampling.LANCZOS)
    return torch.from_numpy(numpy.asarray(scaled).astype("float32") / 255)
