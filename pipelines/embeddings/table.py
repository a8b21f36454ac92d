"""How each family takes the embeddings of ComfyUI's text encoders: the table, and the arguments of a call.

Read side by side in diffusers' `encode_prompt` and ComfyUI's `comfy/text_encoders` and `comfy/sdxl_clip.py`:

| family | tokens | pooled | padding |
| --- | --- | --- | --- |
| FLUX.1 | T5-XXL's last states | CLIP-L's, not projected | filled up to 256 there, to 512 in diffusers; no mask |
| SDXL | last but one states of CLIP-L and CLIP-G, side by side | CLIP-G's, projected | whole chunks of 77 |
| SD 1.5 | CLIP-L's last states | not used | whole chunks of 77 |
| SD 3 | both CLIPs as in SDXL, as wide as T5's, then T5's | both CLIPs', CLIP-L's not projected | T5 to 77, 256 |
| Qwen-Image | Qwen2.5-VL's last states, without those of the template | none | none for one text; a mask |
| Z-Image | Qwen3's last but one states | none | none: one list of tokens a text |
| Wan | UMT5's last states, 0 where nothing is | none | filled up to 512 with 0 |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .given import Embeddings, Size

if TYPE_CHECKING:
    import torch

NOT_USED = -1
"""Of a pooled output: the model reads none, whether there is one or not."""
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Encoding:
    """How one family takes embeddings.

    Attributes:
        encoders: what made them, in words.
        width: of the tokens, from the denoiser's configuration.
        pooled: width of the pooled output likewise; 0 for a family whose encoders give none, or `NOT_USED`.
        pooled_argument: whether the call takes it.
        mask: whether the call takes which tokens are padding.
        listed: whether the call takes a list with the tokens of each item, without padding.
        repeated: whether the shorter of two texts may be repeated to the other's length: it changes nothing where
            each place of the picture looks at tokens alone.
        alike: whether two texts must have the same length.
        longest: most tokens, 0 for any number.
        sizes: whether the call takes the sizes of `Embeddings`.
        guidance: whether guidance is one of the model's inputs, so that ComfyUI hands it on with a text.
    """

    encoders: str
    width: Callable[[Config], Any]
    pooled: Callable[[Config], Any] = lambda config: 0
    pooled_argument: bool = False
    mask: bool = False
    listed: bool = False
    repeated: bool = False
    alike: bool = False
    longest: int = 0
    sizes: bool = False
    guidance: bool = False


_FLUX = Encoding(
    "T5-XXL and CLIP-L",
    lambda config: config["joint_attention_dim"],
    lambda config: config["pooled_projection_dim"],
    pooled_argument=True,
    guidance=True,
)
_QWEN = Encoding("Qwen2.5-VL", lambda config: config["joint_attention_dim"], mask=True, longest=1024)
_WAN = Encoding("UMT5-XXL", lambda config: config["text_dim"])
ENCODINGS: dict[str, Encoding] = {
    "flux": _FLUX,
    "flux-kontext": _FLUX,
    "sdxl": Encoding(
        "CLIP-L and CLIP-G",
        lambda config: config["cross_attention_dim"],
        lambda config: config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"],
        pooled_argument=True,
        repeated=True,
        sizes=True,
    ),
    "sd3": Encoding(
        "CLIP-L, CLIP-G and T5-XXL",
        lambda config: config["joint_attention_dim"],
        lambda config: config["pooled_projection_dim"],
        pooled_argument=True,
        alike=True,
    ),
    "qwenimage": _QWEN,
    "qwenimage-edit": _QWEN,
    "qwenimage-edit-plus": _QWEN,
    "zimage": Encoding("Qwen3-4B", lambda config: config["cap_feat_dim"], listed=True),
    "wan-t2v": _WAN,
    "wan-i2v": _WAN,
    "StableDiffusionPipeline": Encoding(
        "CLIP-L", lambda config: config["cross_attention_dim"], lambda config: NOT_USED, repeated=True
    ),
}
"""Name of a family -> how it takes embeddings."""


def call_arguments(
    encoding: Encoding,
    positive: Embeddings,
    negative: Embeddings | None,
    batch: int,
    size: Size,
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """The arguments of a call that take the place of its prompts.

    Args:
        negative: None where no negative prompt acts.
        batch: items of the run.
        size: of the run.
        device, dtype: where and in what the denoiser computes.
    """
    texts = {"": positive.of_batch(0, batch)}
    if negative is not None:
        texts["negative_"] = negative.of_batch(0, batch)
    length = 0
    if encoding.repeated:
        length = math.lcm(*(text.tokens.shape[1] for text in texts.values()))
    arguments: dict[str, Any] = {"num_images_per_prompt": 1, "num_videos_per_prompt": 1}
    for side, text in texts.items():
        tokens = text.tokens.to(device=device, dtype=dtype)
        if length:
            tokens = tokens.repeat(1, length // tokens.shape[1], 1)
        arguments[f"{side}prompt_embeds"] = _without_padding(tokens, text.mask) if encoding.listed else tokens
        if encoding.pooled_argument and text.pooled is not None:
            arguments[f"{side}pooled_prompt_embeds"] = text.pooled.to(device=device, dtype=dtype)
        if encoding.mask:
            mask = tokens.new_ones(tokens.shape[:2]) if text.mask is None else text.mask
            arguments[f"{side}prompt_embeds_mask"] = mask.to(tokens.device).long()
        if encoding.sizes:
            # All of them, as the pipeline would take those of the one text for the other.
            original = text.original_size or size
            arguments[f"{side}original_size"] = original
            arguments[f"{side}crops_coords_top_left"] = text.crop or (0, 0)
            arguments[f"{side}target_size"] = text.target_size or original
    if encoding.longest:
        # The pipelines cut what is longer than that, and say nothing.
        arguments["max_sequence_length"] = max(512, *(text.tokens.shape[1] for text in texts.values()))
    return arguments


def _without_padding(tokens: torch.Tensor, mask: torch.Tensor | None) -> list[torch.Tensor]:
    if mask is None:
        return list(tokens)
    return [row[kept.to(tokens.device) > 0] for row, kept in zip(tokens, mask, strict=True)]
