"""Encoded texts that a network of the model would read first: what stands in for what it gives, while a call runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..requests import negative_acts
from .check import encoding_of, negative_text_acts

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest

PROJECTION = "text_proj_in"
APART = ("video_text_proj_in", "audio_text_proj_in")
"""The projections of LTX-2.3's connectors, in the order in which ComfyUI's encoder puts what they give side by side."""


@contextmanager
def handed_over(pipeline: Any, family: Family, request: SampleRequest) -> Iterator[None]:
    """While the block runs, the texts of a request take the place that they have in the model.

    Raises:
        InputError: while it runs, of texts that another form of the model takes.
    """
    encoding = encoding_of(family)
    with ExitStack() as hooks:
        if request.positive is not None and encoding is not None and encoding.projected:
            _project(pipeline.connectors, hooks)
        if request.positive is not None and encoding is not None and encoding.ids:
            _weigh(pipeline.text_conditioner, family, request, hooks)
        yield


def _project(connectors: Any, hooks: ExitStack) -> None:
    """Texts that ComfyUI's encoder projected already, as LTX-2's connectors do themselves."""
    names = [name for name in (PROJECTION, *APART) if getattr(connectors, name, None) is not None]
    projections = [getattr(connectors, name) for name in names]
    widths = [projection.out_features for projection in projections]
    given: list[Any] = []

    def keep(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, *others = inputs
        if tokens.shape[2] != sum(widths):
            what = " and ".join(str(width) for width in widths)
            reason = f"its tokens are {tokens.shape[2]} wide, and this model's connectors read {what}"
            raise InputError("positive", f"shape {list(tokens.shape)}", reason, "connect this model's own text encoder")
        given[:] = tokens.split(widths, dim=2)
        # What comes before the projection has nothing to do: a single layer's states of nothing.
        return (tokens.new_zeros(*tokens.shape[:2], connectors.config.caption_channels), *others)

    def nothing(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        # Whatever moves the weights while they are needed sees a call, of a single token.
        return (inputs[0].new_zeros(1, 1, module.in_features),)

    hooks.callback(connectors.register_forward_pre_hook(keep).remove)
    for index, projection in enumerate(projections):

        def instead(module: Any, inputs: tuple[Any, ...], output: Any, index: int = index) -> Any:
            return given[index].to(output.device, output.dtype)

        hooks.callback(projection.register_forward_pre_hook(nothing).remove)
        hooks.callback(projection.register_forward_hook(instead).remove)


def _weigh(conditioner: Any, family: Family, request: SampleRequest, hooks: ExitStack) -> None:
    """What the states of Anima's network count, one text after the other, as its blocks call it."""
    acts = negative_text_acts(family, request.guidance, negative_acts(family, request.guidance))
    texts = [text for text in (request.positive, request.negative if acts else None) if text is not None]
    if not any(text.weights is not None and bool((text.weights != 1).any()) for text in texts):
        return
    turns = cycle(texts)

    def weighed(module: Any, inputs: Any, options: dict[str, Any], output: Any) -> Any:
        weights, count = next(turns).weights, options["target_input_ids"].shape[1]
        if weights is None:
            return output
        rows = weights[[index % len(weights) for index in range(len(output))]].to(output.device, output.dtype)
        counted = output.clone()
        counted[:, :count] *= rows.unsqueeze(-1)
        return counted

    hooks.callback(conditioner.register_forward_hook(weighed, with_kwargs=True).remove)
