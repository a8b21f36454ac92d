"""The diffusion model of LTX-2 and LTX-2.3, and which tensors of a file are whose.

Sources of the configurations, all in agreement with what is here:
- diffusers, `scripts/convert_ltx2_to_diffusers.py`: all of them; `loaders/single_file_utils.py`: the names in LTX-2.
- ComfyUI, `comfy/ldm/lightricks`: the same names and sizes.
Sizes that a file's shapes tell are taken from there.
"""

from __future__ import annotations

from collections.abc import Callable

from ...component import Config, Shapes, Weights, count_blocks

HEADS = 32
"""Heads of attention of layers without gates, which no shape tells."""
CAPTION = 3840
"""Channels of Gemma 3 12B."""
PROJECTION = "text_embedding_projection."
CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.", PROJECTION)
OF_VAE, OF_AUDIO_VAE, OF_VOCODER = "vae.", "audio_vae.", "vocoder."
"""Beginnings of the names of each component in a file of several."""


def without(shapes: Shapes, beginnings: tuple[str, ...]) -> Shapes:
    """The tensors whose names do not begin so."""
    return {name: shape for name, shape in shapes.items() if not name.startswith(beginnings)}


def under(beginnings: tuple[str, ...]) -> Callable[[Shapes], Shapes]:
    """What takes the tensors whose names begin so."""
    return lambda shapes: {name: shape for name, shape in shapes.items() if name.startswith(beginnings)}


def renamed(weights: Weights, names: dict[str, str], beginning: str = "") -> Weights:
    """Weights without `beginning`, and with each of `names` replaced in theirs."""
    found: Weights = {}
    for key, value in weights.items():
        name = key.removeprefix(beginning)
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = value
    return found


def of_model(shapes: Shapes) -> Shapes:
    """The diffusion model's own tensors."""
    return without(shapes, (*CONNECTORS, OF_VAE, OF_AUDIO_VAE, OF_VOCODER))


def model_config(shapes: Shapes) -> Config:
    """The configuration of the diffusion model."""
    embeds = "caption_projection.linear_1.weight" in shapes
    return {
        **_stream(shapes, ""),
        **_stream(shapes, "audio_"),
        "num_layers": count_blocks(shapes, "transformer_blocks."),
        "caption_channels": shapes["caption_projection.linear_1.weight"][1] if embeds else CAPTION,
        "use_prompt_embeddings": embeds,
        "perturbed_attn": not embeds,
        "rope_type": "split",
    }


def _stream(shapes: Shapes, which: str) -> Config:
    """What belongs to the picture ("") or to the sound ("audio_")."""
    block = f"transformer_blocks.0.{which}"
    width, channels = shapes[f"{which}patchify_proj.weight"]
    gate = f"{block}attn1.to_gate_logits.weight"
    heads, *_ = shapes.get(gate, (HEADS,))
    found = {
        "in_channels": channels,
        "out_channels": shapes[f"{which}proj_out.weight"][0],
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "cross_attention_dim": shapes[f"{block}attn2.to_k.weight"][1],
        "gated_attn": gate in shapes,
        "cross_attn_mod": shapes[f"{which}adaln_single.linear.weight"][0] == 9 * width,
    }
    return {f"{which}{name}": value for name, value in found.items()}


def rename_model(weights: Weights, config: Config) -> Weights:
    """As diffusers reads LTX-2; what LTX-2.3 has besides keeps its name there."""
    from diffusers.loaders.single_file_utils import convert_ltx2_transformer_to_diffusers

    found = dict(convert_ltx2_transformer_to_diffusers(dict(weights)))
    return renamed(found, {"prompt_adaln_single.": "prompt_adaln."})
