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
| FLUX.2-klein | three layers' states of Qwen3, side by side | none | filled up to 512; its own negative is "" |
| Wan | UMT5's last states, 0 where nothing is | none | filled up to 512 with 0 |
| Chroma | T5-XXL's last states | none | none there; filled up to 512 in diffusers, which reads some of it |
| LTX-2 | all of Gemma's layers, projected to one, as its connectors do first | none | none there; filled up to 1024 |
| LTX-2.3 | the same, projected once for the picture and once for the sound, side by side | none | as LTX-2 |
| Krea 2 | twelve layers' states of Qwen3-VL, side by side | none | none for one text; a mask |
| Anima | Qwen3-0.6B's last states, and the text in T5's tokens for its own network | none | none for one text |
| ERNIE-Image | Ministral 3 3B's last but one states, not normalized | none | none: one list of tokens a text |
| Helios | as Wan | none | as Wan |
| Ideogram 4 | thirteen layers' states of Qwen3-VL-8B, number by number | none | none for one text |
| MiniMax-H3 | states of Qwen3-VL-32B after its layer 50, not normalized; which tokens are of pictures | none | none |

Modular pipelines take what their blocks for the text would give; those of a model that has a classical pipeline too
take the same.
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
        mask: the call argument that takes which tokens are padding, without the side it is of; "" for none.
        layers: how many layers' states stand side by side in a token, from the denoiser's configuration, where the call
            takes them apart, [B, T, layers, C].
        listed: whether the call takes a list with the tokens of each item, without padding.
        repeated: whether the shorter of two texts may be repeated to the other's length: it changes nothing where
            each place of the picture looks at tokens alone.
        alike: whether two texts must have the same length.
        filled: whether both texts are filled up to one length, and their masks hide that: for a call that counts the
            places of both by the first.
        least, multiple: tokens that they are filled up to at least, and a number that their length is a multiple of.
        projected: whether the tokens are what the connectors' projection gives, see `projected`.
        longest: most tokens, 0 for any number.
        sizes: whether the call takes the sizes of `Embeddings`.
        arguments: the arguments of a call for a text, of another form than the others: (side, tokens, text) -> name ->
            value, with the side "" or "negative_".
        ids: whether the text is taken in the tokens of a second tokenizer too.
        tags: whether the call tells tokens of pictures from those of text.
        empty_negative: whether guidance takes a negative text though the call takes no negative prompt: by itself the
            pipeline encodes an empty one.
        guidance: whether guidance is one of the model's inputs, so that ComfyUI hands it on with a text.
        unlike: what sets these texts apart from the pipeline's own encoding, for the report; "" where nothing does.
    """

    encoders: str
    width: Callable[[Config], Any]
    pooled: Callable[[Config], Any] = lambda config: 0
    pooled_argument: bool = False
    mask: str = ""
    layers: Callable[[Config], Any] | None = None
    listed: bool = False
    repeated: bool = False
    alike: bool = False
    filled: bool = False
    least: int = 0
    multiple: int = 1
    projected: bool = False
    longest: int = 0
    sizes: bool = False
    arguments: Callable[[str, torch.Tensor, Embeddings], dict[str, Any]] | None = None
    ids: bool = False
    tags: bool = False
    empty_negative: bool = False
    guidance: bool = False
    unlike: str = ""


def _ltx2_width(config: Config) -> Any:
    """LTX-2.3's denoiser projects nothing itself: its text is as wide as both its streams."""
    if config.get("use_prompt_embeddings", True):
        return config["caption_channels"]
    return config["cross_attention_dim"] + config["audio_cross_attention_dim"]


def _anima_arguments(side: str, tokens: torch.Tensor, text: Embeddings) -> dict[str, Any]:
    """ComfyUI's sampler reads all tokens that its encoder gives, so none is masked."""
    assert text.ids is not None  # noqa: S101 - checked
    ids = text.ids.to(tokens.device).long()
    return {
        f"{side}qwen_prompt_embeds": tokens,
        f"{side}qwen_attention_mask": tokens.new_ones(tokens.shape[:2]).long(),
        f"{side}t5_input_ids": ids,
        f"{side}t5_attention_mask": ids.new_ones(ids.shape),
    }


def _minimax_arguments(side: str, tokens: torch.Tensor, text: Embeddings) -> dict[str, Any]:
    import torch

    tags = torch.ones(tokens.shape[1]) if text.tags is None else text.tags
    return {f"{side}prompt_embeds": tokens, f"{side}text_token_tags": tags.cpu().long()}


def _ideogram_arguments(side: str, tokens: torch.Tensor, text: Embeddings) -> dict[str, Any]:
    """Its features are in float32, and no token is padding."""
    return {f"{side}text_features": tokens.float(), f"{side}text_lengths": [tokens.shape[1]] * tokens.shape[0]}


_FLUX = Encoding(
    "T5-XXL and CLIP-L",
    lambda config: config["joint_attention_dim"],
    lambda config: config["pooled_projection_dim"],
    pooled_argument=True,
    guidance=True,
)
_QWEN = Encoding("Qwen2.5-VL", lambda config: config["joint_attention_dim"], mask="prompt_embeds_mask", longest=1024)
_CHROMA = Encoding(
    "T5-XXL, loaded as chroma",
    lambda config: config["joint_attention_dim"],
    mask="prompt_attention_mask",
    unlike="Chroma's pipeline reads padding after its own prompts too, and encoded texts without any",
)
_LTX2 = Encoding(
    "Gemma 3 12B with LTX-2's projection",
    _ltx2_width,
    mask="prompt_attention_mask",
    filled=True,
    least=1024,
    multiple=128,
    projected=True,
)
_WAN = Encoding("UMT5-XXL", lambda config: config["text_dim"])
_ERNIE = Encoding("Ministral 3 3B", lambda config: config["text_in_dim"], listed=True)
_KREA2 = Encoding(
    "Qwen3-VL-4B, loaded as krea2",
    lambda config: config["num_text_layers"] * config["text_hidden_dim"],
    mask="prompt_embeds_mask",
    layers=lambda config: config["num_text_layers"],
    filled=True,
)
ENCODINGS: dict[str, Encoding] = {
    "flux": _FLUX,
    "flux-kontext": _FLUX,
    "FluxFillPipeline": _FLUX,
    "ChromaPipeline": _CHROMA,
    "ChromaImg2ImgPipeline": _CHROMA,
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
    "flux2-klein": Encoding("Qwen3", lambda config: config["joint_attention_dim"], empty_negative=True),
    "zimage": Encoding("Qwen3-4B", lambda config: config["cap_feat_dim"], listed=True),
    "ErnieImagePipeline": _ERNIE,
    "ErnieImageModularPipeline": _ERNIE,
    "HeliosModularPipeline": _WAN,
    "Ideogram4ModularPipeline": Encoding(
        "Qwen3-VL-8B, loaded as ideogram4",
        lambda config: config["llm_features_dim"],
        arguments=_ideogram_arguments,
    ),
    "Krea2Pipeline": _KREA2,
    "krea2": _KREA2,
    "krea2-turbo": _KREA2,
    "anima": Encoding(
        "Qwen3-0.6B, loaded as anima",
        lambda config: config["text_embed_dim"],
        arguments=_anima_arguments,
        ids=True,
    ),
    "minimax-h3": Encoding(
        "Qwen3-VL-32B, loaded as minimax",
        lambda config: config["text_dim"],
        arguments=_minimax_arguments,
        tags=True,
    ),
    "ltx2-t2v": _LTX2,
    "ltx2-i2v": _LTX2,
    "LTX2ModularPipeline": _LTX2,
    "wan-t2v": _WAN,
    "wan-i2v": _WAN,
    "StableDiffusionPipeline": Encoding(
        "CLIP-L", lambda config: config["cross_attention_dim"], lambda config: NOT_USED, repeated=True
    ),
}
"""Name of a family -> how it takes embeddings."""
_UNKNOWN_THERE = "no ComfyUI up to 0.33 has its text encoder, so nothing there encodes a text for it"
NOT_TAKEN = {
    "flux3": _UNKNOWN_THERE,
    "flux3-distilled": _UNKNOWN_THERE,
    "qwenimage21": _UNKNOWN_THERE,
    "qwenimage21-turbo": _UNKNOWN_THERE,
}
"""Name of a family that takes no embeddings of ComfyUI's -> why."""


def call_arguments(
    encoding: Encoding,
    config: Config,
    positive: Embeddings,
    negative: Embeddings | None,
    batch: int,
    size: Size,
    device: torch.device | None,
    dtype: torch.dtype | None,
) -> dict[str, Any]:
    """The arguments of a call that take the place of its prompts.

    Args:
        config: of the denoiser.
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
    if encoding.filled:
        most = max(encoding.least, *(text.tokens.shape[1] for text in texts.values()))
        most = -(-most // encoding.multiple) * encoding.multiple
        texts = {side: text.filled(most) for side, text in texts.items()}
    arguments: dict[str, Any] = {"num_images_per_prompt": 1, "num_videos_per_prompt": 1}
    for side, text in texts.items():
        tokens = text.tokens.to(device=device, dtype=dtype)
        if length:
            tokens = tokens.repeat(1, length // tokens.shape[1], 1)
        if encoding.layers is not None:
            tokens = tokens.unflatten(2, (encoding.layers(config), -1))
        if encoding.arguments is not None:
            arguments |= encoding.arguments(side, tokens, text)
            continue
        arguments[f"{side}prompt_embeds"] = _without_padding(tokens, text.mask) if encoding.listed else tokens
        if encoding.pooled_argument and text.pooled is not None:
            arguments[f"{side}pooled_prompt_embeds"] = text.pooled.to(device=device, dtype=dtype)
        if encoding.mask:
            mask = tokens.new_ones(tokens.shape[:2]) if text.mask is None else text.mask
            # In numbers, attention would add it to what it hides.
            arguments[f"{side}{encoding.mask}"] = mask.to(tokens.device) > 0
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
