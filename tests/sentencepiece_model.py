"""A SentencePiece model of a few words, as UMT5's text encoder files hold one."""

from __future__ import annotations

import io
from functools import cache

WORDS = ("a red fox runs over the snow", "blue birds sing, and the fox listens", "ice on the lake: 12 swans")
TOKENS = 36


@cache
def sentencepiece_model() -> bytes:
    """Trained by SentencePiece's own library, with the special tokens where T5 has them."""
    import sentencepiece

    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_writer=proto,
        vocab_size=TOKENS,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return proto.getvalue()
