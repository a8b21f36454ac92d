"""Gemma 3, which encodes the texts of LTX-2, as ComfyUI's users have it as a file, and its tokenizer.

Sources of the configuration, in agreement with what is here:
- ComfyUI, class Gemma3_12B_Config of `comfy/text_encoders/llama.py`: sizes, positions, and which layers see how far;
  `comfy/text_encoders/lt.py`: that texts begin with a token of their own and are filled up from the left.
- transformers: what is left out here is the default of `Gemma3TextConfig`.
The part that sees pictures is not read: LTX-2 has texts encoded alone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ...component import Component, Config, Shapes, Tokenizer, Weights, count_blocks

GEMMA3_12B: Config = {
    "vocab_size": 262208,
    "hidden_size": 3840,
    "intermediate_size": 15360,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 1024,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 8,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
_NORM = "model.layers.0.pre_feedforward_layernorm.weight"
_SPECIALS = {f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
_LONGEST = 1024


def is_gemma3(shapes: Shapes) -> bool:
    """Gemma 2 has no norm of queries, and Gemma 4 scales its layers besides."""
    wanted = (_NORM, "model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.v_proj.weight")
    return all(name in shapes for name in wanted) and "model.layers.0.layer_scalar" not in shapes


def _config(shapes: Shapes) -> Config:
    layers = count_blocks(shapes, "model.layers.")
    return {**GEMMA3_12B, "num_hidden_layers": layers, "layer_types": GEMMA3_12B["layer_types"][:layers]}


def _fitted(config: Config, shapes: Shapes) -> Config:
    """The texts' part of a configuration of the whole."""
    return dict(config.get("text_config", config))


def _own(shapes: Shapes) -> Shapes:
    return {name: shape for name, shape in shapes.items() if name.startswith("model.")}


def _rename(weights: Weights, config: Config) -> Weights:
    return {key.removeprefix("model."): value for key, value in weights.items()}


def tokenizer_of(model: bytes) -> Any:
    """Gemma's tokenizer from its SentencePiece model."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import GemmaConverter

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tokenizer.model")
        file.write_bytes(model)
        backend = GemmaConverter(SimpleNamespace(vocab_file=str(file), **_SPECIALS)).converted()
    start = backend.token_to_id("<bos>")
    backend.post_processor = TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", start)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", model_max_length=_LONGEST, add_bos_token=True, **_SPECIALS
    )


GEMMA3_ENCODER = Component(
    "transformers",
    "Gemma3TextModel",
    "Gemma 3 12B, usually gemma_3_12B_it_fp8_scaled.safetensors or gemma_3_12B_it.safetensors",
    is_gemma3,
    _config,
    _rename,
    own=_own,
    fitted=_fitted,
)
GEMMA_TOKENIZER = Tokenizer("GemmaTokenizerFast", inside="text_encoder", held=tokenizer_of)
