"""Texts that ComfyUI's encoder projected to one state for each token, as LTX-2's connectors do themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ...errors import InputError

PROJECTION = "text_proj_in"


@contextmanager
def projected(pipeline: Any, needed: bool) -> Iterator[None]:
    """While the block runs, what the connectors are given is what their projection gives, if `needed`.

    Raises:
        InputError: the model reads a text for its picture and another for its sound.
    """
    if not needed:
        yield
        return
    connectors = pipeline.connectors
    projection = getattr(connectors, PROJECTION, None)
    if projection is None:
        reason = "this model projects its text for picture and sound apart, and takes none that is projected already"
        raise InputError("positive", "connected", reason, "disconnect it, and write the prompt")
    given: list[Any] = []

    def keep(module: Any, inputs: tuple[Any, ...]) -> None:
        given[:] = inputs[:1]

    def nothing(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        # Whatever moves the weights while they are needed sees a call, of a single token.
        return (inputs[0].new_zeros(1, 1, projection.in_features),)

    def instead(module: Any, inputs: tuple[Any, ...], output: Any) -> Any:
        return given[0].to(output.device, output.dtype)

    with ExitStack() as hooks:
        for hook in (
            connectors.register_forward_pre_hook(keep),
            projection.register_forward_pre_hook(nothing),
            projection.register_forward_hook(instead),
        ):
            hooks.callback(hook.remove)
        yield
