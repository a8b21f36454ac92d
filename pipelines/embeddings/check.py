"""What is refused of encoded texts, before anything loads where the model's configuration is known by then."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..conditions.references import references_of
from .table import ENCODINGS, NOT_TAKEN, NOT_USED, Encoding

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest
    from .given import Embeddings

WIDTHS = {
    768: "CLIP-L, as SD 1.5 has",
    1024: "OpenCLIP-H, as SD 2 has, or Qwen3-0.6B, as Anima has",
    2048: "CLIP-L and CLIP-G, as SDXL has",
    2560: "Qwen3-4B, as Z-Image has",
    3072: "Ministral 3 3B, as ERNIE-Image has",
    3840: "Gemma 3 12B's with LTX-2's projection",
    3584: "Qwen2.5-VL, as Qwen-Image has",
    4096: "T5-XXL or UMT5-XXL, as FLUX.1, SD 3, Wan and Helios have",
    5120: "Qwen3-VL-32B, as MiniMax-H3 has",
    6144: "Gemma 3 12B's with LTX-2.3's two projections",
    7680: "Qwen3-4B's layers for FLUX.2-klein",
    12288: "Qwen3-8B's layers for FLUX.2-klein",
    53248: "Qwen3-VL-8B's layers for Ideogram 4",
    30720: "Qwen3-VL-4B's layers for Krea 2",
}
"""Width of published text encoders' tokens -> which they are."""


def encoding_of(family: Family) -> Encoding | None:
    """How a family takes embeddings; None where that is not known."""
    return ENCODINGS.get(family.name)


def negative_text_acts(family: Family, guidance: float | None, acts: bool) -> bool:
    """Whether an encoded negative text changes anything.

    Args:
        acts: whether a negative prompt would.
    """
    encoding = encoding_of(family)
    if encoding is None or not encoding.empty_negative or not family.guidance_argument:
        return acts
    return guidance is None or guidance > family.negative_above


def check_texts(family: Family, request: SampleRequest, guidance: float | None, acts: bool) -> list[str]:
    """Check the embeddings of a request against what is known of the family.

    Args:
        guidance: of the run, None for the pipeline's own.
        acts: whether a negative prompt would.

    Returns:
        Notes for the report: what is not used because of them.

    Raises:
        InputError: they cannot be used.
    """
    if request.positive is None:
        if request.negative is not None:
            cure = "connect positive too, or write the negative prompt"
            raise InputError("negative", "connected", "the positive text is not encoded, and one call takes both", cure)
        return []
    encoding = encoding_of(family)
    if encoding is None:
        reason = f"which embeddings {family.name} takes is not known here; it is of {_known()}"
        if family.name in NOT_TAKEN:
            reason = f"{family.name} encodes its own prompt: {NOT_TAKEN[family.name]}"
        raise InputError("positive", "connected", reason, "disconnect it, and write the prompt")
    guided = negative_text_acts(family, guidance, acts)
    if guided and request.negative is None:
        reason = f"guidance = {request.guidance if request.guidance is not None else family.guidance:g} needs one"
        cure = "connect one, of an empty text say, or set guidance to "
        raise InputError("negative", "not connected", reason, cure + f"{family.negative_above:g}")
    used = {"positive": request.positive, "negative": request.negative if guided else None}
    for name, text in used.items():
        if text is not None:
            _check_shape(name, text)
            _check_numbers(name, text.tokens, text.weights, text.pooled if encoding.pooled_argument else None)
            _check_second_tokens(name, family, encoding, text)
    if guided and encoding.alike and request.negative is not None:
        lengths = [text.tokens.shape[1] for text in (request.positive, request.negative)]
        if lengths[0] != lengths[1]:
            reason = f"{family.name} takes texts of one length, and positive has {lengths[0]} tokens"
            raise InputError("negative", f"{lengths[1]} tokens", reason, "shorten the longer text")
    return _unused(family, request, encoding, guided)


def _check_second_tokens(name: str, family: Family, encoding: Encoding, text: Embeddings) -> None:
    """Refuse a text without the tokens of a second tokenizer where the model reads them, and with them where not."""
    cure = f"connect this model's own text encoders: {encoding.encoders}"
    if encoding.ids and text.ids is None:
        reason = f"{family.name} reads the text in T5's tokens too, and it holds none"
        raise InputError(name, "connected", reason, cure)
    if text.ids is not None and not encoding.ids:
        reason = f"it holds T5's tokens for Anima's own network, and {family.name} has none that reads them"
        raise InputError(name, "connected", reason, cure)


def _check_shape(name: str, text: Embeddings) -> None:
    shape = list(text.tokens.shape)
    if len(shape) != 3 or 0 in shape:
        raise InputError(name, f"shape {shape}", "embeddings are [batch, tokens, width]", "connect a text encoder")


def _check_numbers(name: str, *given: Any) -> None:
    """Refuse what holds no numbers, as of a latent: the run would end in it, and nothing tell that it began so."""
    from ...fallback import all_finite

    if not all_finite(given):
        reason = "it holds NaN or infinite values, and so would all that is made of it"
        raise InputError(name, "NaN", reason, "encode the text anew, in float32 where its text encoder overflows")


def check_widths(family: Family, request: SampleRequest, denoiser: type, config: Mapping[str, Any]) -> None:
    """Refuse embeddings of another family.

    Args:
        denoiser: class of the denoiser, whose defaults a configuration may leave out.

    Raises:
        InputError: the denoiser takes others.
    """
    encoding = encoding_of(family)
    if encoding is None or request.positive is None:
        return
    whole = {**_defaults(denoiser), **config}
    width, pooled = int(encoding.width(whole)), int(encoding.pooled(whole))
    for name, text in (("positive", request.positive), ("negative", request.negative)):
        if text is None or (name == "negative" and not (family.negative_prompt or encoding.empty_negative)):
            continue
        found = text.tokens.shape[2]
        cure = f"connect this model's own text encoders: {encoding.encoders}"
        if found != width:
            made = f": {WIDTHS[found]}" if found in WIDTHS else ""
            reason = f"its tokens are {found} wide, and {family.name} takes {width}{made}"
            raise InputError(name, f"shape {list(text.tokens.shape)}", reason, cure)
        has = 0 if text.pooled is None else text.pooled.shape[-1]
        if pooled != NOT_USED and has != pooled:
            held, wanted = (f"one of {size}" if size else "none" for size in (has, pooled))
            reason = f"as pooled output it has {held}, and {family.name} takes {wanted}"
            raise InputError(name, "pooled_output", reason, cure)
        if encoding.longest and text.tokens.shape[1] > encoding.longest:
            reason = f"{family.name} reads {encoding.longest} tokens"
            raise InputError(name, f"{text.tokens.shape[1]} tokens", reason, "shorten the text")


def _defaults(denoiser: type) -> dict[str, Any]:
    parameters = inspect.signature(denoiser.__init__).parameters  # type: ignore[misc]
    return {name: entry.default for name, entry in parameters.items() if entry.default is not entry.empty}


def _unused(family: Family, request: SampleRequest, encoding: Encoding, guided: bool) -> list[str]:
    notes = []
    for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
        if text.strip():
            side = "positive" if name == "prompt" else "negative"
            said = f"{side} is connected and goes before it" if getattr(request, side) else "positive is connected"
            notes.append(f"{name} ignored: {said}.")
    if request.negative is not None and not guided:
        takes = family.negative_prompt or encoding.empty_negative
        why = "guidance switches it off" if takes else f"{family.name} has none"
        notes.append(f"negative ignored: {why}.")
    if request.max_sequence_length is not None:
        notes.append("max_sequence_length ignored: the text is encoded already.")
    if encoding.unlike:
        notes.append(f"{encoding.unlike}.")
    for name in ("positive", "negative") if guided else ("positive",):
        text = getattr(request, name)
        hidden = text is not None and text.mask is not None and not bool((text.mask > 0).all())
        if hidden and not (encoding.mask or encoding.listed):
            notes.append(f"the attention mask of {name} is ignored: {family.name} reads its padding too.")
        shown = bool(request.images or references_of(request))
        if text is not None and shown and encoding.tags and (text.tags is None or bool((text.tags > 0).all())):
            notes.append(f"{name} says nothing of the pictures: {family.name}'s own encoding would show them to it.")
        if text is not None and not encoding.sizes and (text.original_size or text.crop or text.target_size):
            notes.append(f"the sizes of {name} are ignored: {family.name} takes none.")
        if text is not None and text.tokens.shape[0] > request.batch:
            notes.append(f"of {name}'s {text.tokens.shape[0]} items, only the first {request.batch} were used.")
    return notes


def _known() -> str:
    return ", ".join(ENCODINGS)
