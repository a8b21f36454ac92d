"""Gemma 3, which encodes the texts of LTX-2, as ComfyUI's users have it as a file, and its tokenizer.

Sources of the configuration, in agreement with what is here:
- ComfyUI, class Gemma3_12B_Config of `comfy/text_encoders/llama.py`: sizes, positions, and which layers see how far;
  `comfy/text_encoders/lt.py`: that texts begin with a token of their own and are filled up from the left.
- transformers: what is left out here is the default of `Gemma3TextConfig`.
The part that sees pictures is not read: LTX-2 has texts encoded alone.
"""

from __future__ import annotations

from collections.abc import Iterator
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
_SPACE = "\u2581"
"""How a piece writes a space."""
_NORMAL, _OF_ITS_OWN, _MERGED = 1, 4, (1, 4)
"""Kinds of pieces: of letters, one that is never divided, and both."""
_FIXED = {1: 8, 5: 4}
"""Bytes of a value that always has as many, by its kind in a protocol buffer."""


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
    """Gemma's tokenizer from its SentencePiece model: pieces that merge, and the bytes of what no piece has."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = list(sentencepieces(model))
    vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
    merges = _merges([piece for piece, kind in pieces if kind in _MERGED], vocabulary)
    backend: Any = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=_SPECIALS["unk_token"], fuse_unk=True, byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    whole = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(whole)
    backend.add_tokens([AddedToken(piece, normalized=True) for piece, kind in pieces if kind == _OF_ITS_OWN])
    start = _SPECIALS["bos_token"]
    backend.post_processor = processors.TemplateProcessing(
        f"{start} $A", f"{start} $A {start} $B", [(start, vocabulary[start])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", model_max_length=_LONGEST, add_bos_token=True, **_SPECIALS
    )


def _merges(pieces: list[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that become a piece, those of the pieces that were found first before the others."""
    found = []
    for piece in pieces:
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        pairs = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        found += sorted(pairs, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return found


def sentencepieces(model: bytes) -> Iterator[tuple[str, int]]:
    """(piece, kind) of a SentencePiece model, in the order of their numbers.

    Read here, as the package that does it is not everywhere: a model is a protocol buffer, whose field 1 is a piece, of
    which field 1 is its text and field 3 its kind, `_NORMAL` where it is left out.
    """
    for field, value in _fields(model):
        if field == 1 and isinstance(value, bytes):
            held = dict(_fields(value))
            text, kind = held.get(1, b""), held.get(3, _NORMAL)
            if isinstance(text, bytes) and isinstance(kind, int):
                yield text.decode(), kind


def _fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """(number, value) of the fields of a protocol buffer.

    Raises:
        ValueError: it is none.
    """
    at = 0
    while at < len(data):
        tag, at = _number(data, at)
        kind = tag & 7
        if kind == 0:
            value: bytes | int
            value, at = _number(data, at)
        elif kind in _FIXED or kind == 2:
            size, at = (_FIXED[kind], at) if kind in _FIXED else _number(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise ValueError("its tokenizer is no SentencePiece model")
        if at > len(data):
            raise ValueError("its tokenizer ends in the middle")
        yield tag >> 3, value


def _number(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = shift = 0
    while at < len(data):
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
    raise ValueError("its tokenizer ends in the middle")


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
