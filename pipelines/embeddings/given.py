"""One encoded text, as it is given to a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]
"""Rows and columns, in pixels."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What text encoders made of a text.

    Attributes:
        tokens: float [B, T, C], B items of T tokens. Item i of a batch takes item i, beginning again after the last.
        pooled: float [B, D], where the encoders give one for the whole text.
        mask: [B, T], 0 for tokens that are padding; None where all count.
        original_size, crop, target_size: of the pictures that SDXL shall think of: size before they were scaled,
            upper left corner of what was cut out, and size after it. None is what the run makes, uncut.
        ids, weights: int and float [B, T2], the text in the tokens of a second tokenizer, which a network of the model
            itself reads beside `tokens` (Anima), and what each of its states counts.
        tags: int [T], 1 for tokens of text and 0 for those of pictures, where the encoder tells (MiniMax-H3).
    """

    tokens: torch.Tensor
    pooled: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    original_size: Size | None = None
    crop: Size | None = None
    target_size: Size | None = None
    ids: torch.Tensor | None = None
    weights: torch.Tensor | None = None
    tags: torch.Tensor | None = None

    def of_batch(self, first: int, count: int) -> Embeddings:
        """The items `first`, `first + 1`, ... of a batch, as ComfyUI's samplers count: from the beginning again after
        the last one, and what is over is left out."""

        def chosen(tensor: torch.Tensor | None) -> torch.Tensor | None:
            if tensor is None:
                return None
            return tensor[[index % tensor.shape[0] for index in range(first, first + count)]]

        tokens = chosen(self.tokens)
        assert tokens is not None  # noqa: S101 - there are tokens
        return replace(
            self,
            tokens=tokens,
            pooled=chosen(self.pooled),
            mask=chosen(self.mask),
            ids=chosen(self.ids),
            weights=chosen(self.weights),
        )

    def filled(self, length: int) -> Embeddings:
        """The same text with so many tokens, which its mask hides where they are added."""
        from torch.nn.functional import pad

        added = length - self.tokens.shape[1]
        if added <= 0:
            return self
        mask = self.tokens.new_ones(self.tokens.shape[:2]) if self.mask is None else self.mask
        tokens = pad(self.tokens, (0, 0, 0, added))
        return replace(self, tokens=tokens, mask=pad(mask, (0, added)))
