"""A CONDITIONING as the sampler reads it.

It is a list of entries, each embeddings and a dictionary that ComfyUI's nodes write into. Every key is used, refused
because the picture would be another one without it, or named in the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...pipelines.embeddings.check import encoding_of
from ...pipelines.embeddings.given import Embeddings

if TYPE_CHECKING:
    from ...pipelines.families import Family
    from ...pipelines.types import SampleRequest

USED = {
    *("pooled_output", "attention_mask", "guidance", "unprocessed_ltxav_embeds"),
    *("t5xxl_ids", "t5xxl_weights", "minimax_token_tags"),
    *("width", "height", "crop_w", "crop_h", "target_width", "target_height"),
}
NEUTRAL = {
    "strength": 1.0,
    "mask_strength": 1.0,
    "start_percent": 0.0,
    "end_percent": 1.0,
    "clip_start_percent": 0.0,
    "clip_end_percent": 1.0,
    "control_apply_to_uncond": None,
    "set_area_to_bounds": None,
}
"""Keys that change nothing with such a value; with None, whatever their value is: they say how another key is meant."""
PICTURES = "connect the picture to images: the model's own VAE encodes it"
REFUSED = {
    "area": ("an area", "leave Conditioning (Set Area) out"),
    "mask": ("a mask", "leave Conditioning (Set Mask) out"),
    "strength": ("a strength", "leave it at 1"),
    "mask_strength": ("a strength", "leave it at 1"),
    "start_percent": ("a range of timesteps", "leave ConditioningSetTimestepRange out"),
    "end_percent": ("a range of timesteps", "leave ConditioningSetTimestepRange out"),
    "clip_start_percent": ("a schedule of its text encoder", "leave the hooks' keyframes out"),
    "clip_end_percent": ("a schedule of its text encoder", "leave the hooks' keyframes out"),
    "control": ("a ControlNet", "leave Apply ControlNet out"),
    "hooks": ("hooks", "leave them out; Load LoRA (Diffusers) has LoRAs"),
    "gligen": ("GLIGEN boxes", "leave them out"),
    "unclip_conditioning": ("an unCLIP picture", "leave unCLIPConditioning out"),
    "reference_latents": ("reference latents", PICTURES),
    "concat_latent_image": ("a picture's latent", PICTURES),
    "concat_image": ("a picture", PICTURES),
    "noise_concat": ("a picture's latent", PICTURES),
    "clip_vision_output": ("a picture that CLIP Vision read", PICTURES),
    "time_dim_concat": ("a clip's latent", PICTURES),
    "time_dim_replace": ("a clip's latent", PICTURES),
    "control_video": ("a video to follow", "leave it out"),
    "vace_frames": ("frames of VACE", "leave WanVaceToVideo out"),
    "camera_conditions": ("a camera's path", "leave it out"),
    "audio_embed": ("sound", "leave it out"),
    "ref_audio": ("sound", "leave it out"),
    "keyframe_idxs": ("keyframes", "leave them out; Keyframe Condition has keyframes"),
    "generated_keyframes": ("keyframes", "leave them out; Keyframe Condition has keyframes"),
    "minimax_keyframes": ("keyframes", PICTURES),
    "minimax_refs": ("references", "leave MiniMax's reference node out; Video Condition and images have references"),
    "guide_attention_entries": ("guides", "leave them out; Keyframe Condition has keyframes"),
    "prompt_type": ("a type of prompt", "leave it out"),
}
"""Keys of which the picture depends: what they are, and what to do instead."""


def add_texts(
    request: SampleRequest, family: Family, positive: Sequence[Any] | None, negative: Sequence[Any] | None
) -> tuple[SampleRequest, list[str]]:
    """Return the request with the texts that are connected, and what is to be said of them.

    The guidance that a text carries is the run's where the request leaves it open and the model takes it as an input.

    Raises:
        InputError: an entry holds what this sampler cannot do, or there are several.
    """
    notes: list[str] = []
    for name, conditioning in (("positive", positive), ("negative", negative)):
        if conditioning is None:
            continue
        text, values = _entry(name, conditioning)
        encoded: dict[str, Any] = {name: _embeddings(text, values)}
        request = replace(request, **encoded)
        if "guidance" in values:
            request = _guided(name, values["guidance"], family, request, notes)
        others = sorted(set(values) - USED - set(REFUSED) - set(NEUTRAL))
        if others := [key for key in others if values[key] is not None]:
            notes.append(f"of {name}, {', '.join(others)} had no use here")
    return request, notes


def _entry(name: str, conditioning: Sequence[Any]) -> tuple[Any, Mapping[str, Any]]:
    """The one entry of a CONDITIONING. Raises InputError."""
    if len(conditioning) != 1:
        reason = "this sampler takes one text, and each of several has its own part in ComfyUI's"
        cure = "use Conditioning (Concat) instead of Combine" if conditioning else "connect CLIP Text Encode's output"
        raise InputError(name, f"{len(conditioning)} entries", reason, cure)
    text, values = conditioning[0]
    for key, (what, cure) in REFUSED.items():
        found = values.get(key)
        if found is None or (key in NEUTRAL and found == NEUTRAL[key]):
            continue
        raise InputError(name, key, f"it holds {what}, which this sampler does not apply", cure)
    return text, values


def _embeddings(text: Any, values: Mapping[str, Any]) -> Embeddings:
    """Embeddings of an entry; sizes that it leaves out are those that ComfyUI takes for them."""
    mask, tags = values.get("attention_mask"), values.get("minimax_token_tags")
    tokens = text.shape[1] if mask is not None or tags is not None else 0
    original = _size(values, "height", "width")
    return Embeddings(
        text,
        pooled=values.get("pooled_output"),
        mask=None if mask is None else _of_all(mask.reshape(mask.shape[0], -1)[:, -tokens:], tokens),
        original_size=original,
        crop=_size(values, "crop_h", "crop_w"),
        target_size=_size(values, "target_height", "target_width"),
        ids=_row(values.get("t5xxl_ids")),
        weights=_row(values.get("t5xxl_weights")),
        tags=None if tags is None else _of_all(tags, tokens),
    )


def _of_all(marks: Any, tokens: int) -> Any:
    """A mark of each token, [..., T]. Conditioning (Concat) keeps those of the first text; the others all count."""
    from torch.nn.functional import pad

    return pad(marks, (0, max(0, tokens - marks.shape[-1])), value=1)


def _row(found: Any) -> Any:
    """One text's tokens, [T], as a batch of one."""
    return found if found is None or found.ndim > 1 else found[None]


def _size(values: Mapping[str, Any], rows: str, columns: str) -> tuple[int, int] | None:
    if rows not in values or columns not in values:
        return None
    return int(values[rows]), int(values[columns])


def _guided(name: str, guidance: float | None, family: Family, request: SampleRequest, notes: list[str]) -> Any:
    """The request with the guidance of a text, where the model reads it as an input, as ComfyUI hands it on."""
    encoding = encoding_of(family)
    if encoding is None or not encoding.guidance or not family.guidance_argument or name == "negative":
        notes.append(f"the guidance of {name} had no use here: {family.name} does not read it of a text")
        return request
    if guidance is None:
        reason = f"it switches the guidance off that {family.name} reads, and its pipeline cannot"
        raise InputError(name, "guidance", reason, "leave FluxDisableGuidance out")
    if request.guidance is not None:
        if request.guidance != guidance:
            own = f"the sampler's own, {request.guidance:g}, goes before it"
            notes.append(f"guidance of {name}, {guidance:g}, ignored: {own}")
        return request
    notes.append(f"guidance: {guidance:g}, as {name} has it")
    return replace(request, guidance=float(guidance))
