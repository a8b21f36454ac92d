"""What a model that was loaded without its text encoders or its VAE cannot do."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from ...errors import InputError
from ..conditions.references import references_of

if TYPE_CHECKING:
    from ..types import LoadKey, SampleRequest


def check_absent(key: LoadKey, request: SampleRequest) -> None:
    """Refuse what the components that a model was loaded without would have to do. Raises InputError."""
    if not key.holds("text_encoder") and request.positive is None:
        no_encoder()
    if request.decode:
        cure = "switch decode off and use VAE Decode on the latent, or choose or connect a VAE"
        require_vae(key, "decode", "on", cure)
    if request.images or request.last_image is not None:
        require_vae(key, "images", "given", "choose a VAE in the loader: it encodes them")
    if references_of(request):
        require_vae(key, "reference_video", "given", "choose a VAE in the loader: it encodes them")


def require_vae(key: LoadKey, name: str, value: str, cure: str) -> None:
    """Raise InputError for a model that was loaded without its VAE."""
    if not key.holds("vae"):
        raise InputError(name, value, "the model was loaded without its VAE", cure)


def no_encoder() -> NoReturn:
    """Raise InputError: a model that was loaded without its text encoders gets a text."""
    reason = "the model was loaded without a text encoder, and no encoded text was given"
    cure = "connect CLIP Text Encode to positive, or load a text encoder (--text-encoder) where the model's is read"
    raise InputError("positive", "none", reason, cure)
