"""Tokenizers for the embedded tiny pipelines: one token per byte or character, or a trained model's words.

transformers 5 builds a tokenizer from a vocabulary; before, it wanted files, or a ready-made one of the `tokenizers`
package. Both ways give the same tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CLIP_TOKENS = 77
"""Longest prompt of the CLIP encoders, in tokens."""
CLIP_VOCABULARY = 2 * 256 + 2
T5_VOCABULARY = 4 + 94 + 95
GEMMA_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
GEMMA_VOCABULARY = len(GEMMA_SPECIALS) + 1 + 94 + 95 + 3
"""The last three stand for pictures, which no prompt holds."""
QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_VOCABULARY = 256 + len(QWEN_SPECIALS)
SPACE = "\u2581"
"""How SentencePiece vocabularies write a space."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip_tokenizer(
    vocabulary: Mapping[str, int] | None = None, merges: Sequence[tuple[str, str]] = (), longest: int = CLIP_TOKENS
) -> Any:
    """Bytes, and bytes that end a word, between <|startoftext|> and <|endoftext|>.

    Args:
        vocabulary, merges: of a trained model: the pieces that its words are made of, beside the bytes.
        longest: prompt, in tokens.
    """
    if vocabulary is None:
        characters = byte_characters()
        names = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
        vocabulary = {token: index for index, token in enumerate(names)}
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokens, pairs, ids = dict(vocabulary), list(merges), (vocabulary[start], vocabulary[end])
    specials = dict.fromkeys(("unk_token", "eos_token", "pad_token"), end)

    def backend() -> Any:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        tokenizer = Tokenizer(
            models.BPE(tokens, pairs, end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=end)
        )
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        words = pre_tokenizers.Split(_pattern(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.post_processor = processors.RobertaProcessing((end, ids[1]), (start, ids[0]), False, False)
        return tokenizer

    options = {"bos_token": start, "model_max_length": longest, **specials}
    return _build("CLIPTokenizer", {"vocab": tokens, "merges": pairs}, backend, options)


def t5_tokenizer(vocabulary: Sequence[tuple[str, float]] | None = None, longest: int = 512) -> Any:
    """The printable characters of Latin-1; anything else is unknown.

    Args:
        vocabulary: of a trained model: pieces and their scores, words beside the characters.
        longest: prompt, in tokens.
    """
    if vocabulary is None:
        characters = latin_characters()
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, -2.0), *((c, -3.0) for c in characters)]
    pieces = [(piece, score) for piece, score in vocabulary]

    def backend() -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
        words = (pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always", split=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(words))
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
        return tokenizer

    return _build("T5Tokenizer", {"vocab": pieces}, backend, {"extra_ids": 0, "model_max_length": longest})


def gemma_tokenizer() -> Any:
    """The printable characters of Latin-1 after <bos>; anything else is unknown."""
    tokens = [*GEMMA_SPECIALS, SPACE, *latin_characters()]
    vocabulary = {token: index for index, token in enumerate(tokens)}

    def backend() -> Any:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        unknown = GEMMA_SPECIALS[3]
        tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown, fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = normalizers.Replace(" ", SPACE)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        start = vocabulary["<bos>"]
        tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", "<bos> $A <bos> $B", [("<bos>", start)])
        return tokenizer

    specials = {name + "_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")}
    options = {"model_max_length": 1024, "padding_side": "left", "add_bos_token": True, **specials}
    return _build("GemmaTokenizer", {"vocab": vocabulary, "merges": []}, backend, options)


def qwen_tokenizer() -> Any:
    """Bytes and Qwen's special tokens, with a chat template."""
    vocabulary = {token: index for index, token in enumerate((*byte_characters(), *QWEN_SPECIALS))}

    def backend() -> Any:
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

        tokenizer = Tokenizer(models.BPE(vocabulary, [], continuing_subword_prefix="", end_of_word_suffix=""))
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, special=True) for token in QWEN_SPECIALS])
        return tokenizer

    options = {
        "model_max_length": 4096,
        "additional_special_tokens": list(QWEN_SPECIALS[1:]),
        "chat_template": CHAT_TEMPLATE,
        **dict.fromkeys(("unk_token", "eos_token", "pad_token"), QWEN_SPECIALS[0]),
    }
    return _build("Qwen2Tokenizer", {"vocab": vocabulary, "merges": []}, backend, options)


def _build(name: str, vocabulary: dict[str, Any], backend: Callable[[], Any], options: dict[str, Any]) -> Any:
    import transformers

    tokenizer_class = getattr(transformers, name)
    if "vocab" in inspect.signature(tokenizer_class.__init__).parameters:
        return tokenizer_class(**vocabulary, **options)
    return getattr(transformers, name + "Fast")(tokenizer_object=backend(), **options)


def _pattern(expression: str) -> Any:
    from tokenizers import Regex

    return Regex(expression)


def latin_characters() -> list[str]:
    return [chr(code) for code in (*range(33, 127), *range(161, 256))]


def byte_characters() -> list[str]:
    """The 256 printable stand-ins for bytes that byte-level BPE vocabularies are written in (the GPT-2 table)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]
