"""One call of a modular pipeline in two parts: up to the latent, and, where it is asked for, from there to pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ..classes.guidance import GUIDER
from .blocks import blocks_of, inputs, outputs, stages
from .models import SCALE

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest

_LOGGER = "diffusers.modular_pipelines.modular_pipeline"
_LATENTS = "latents"
_ASKED = {
    "steps": "num_inference_steps",
    "width": "width",
    "height": "height",
    "max_sequence_length": "max_sequence_length",
}
"""Field of a request -> the input that it becomes."""


class Ran(Mapping[str, Any]):
    """What a run up to the latent gave; the pictures are made when they are looked at, once.

    As the outputs of other pipelines, it is a mapping of names, has them as attributes, and [0] is the first: the
    latent as the denoising ended with it.
    """

    def __init__(self, pipeline: Any, state: Any) -> None:
        self._pipeline, self._state, self._decoded = pipeline, state, False
        front, rest = stages(blocks_of(pipeline))
        self._rest = rest
        made = {name for _, block in rest for name in outputs(block)}
        before = {name for _, block in front for name in outputs(block)}
        self._names = sorted(made - before - {_LATENTS}) or sorted(made - {_LATENTS})

    @property
    def latents(self) -> Any:
        """As the blocks before the decoding leave it, or None."""
        return self._state.get(_LATENTS)

    def __getitem__(self, key: Any) -> Any:
        if key == 0:
            return self.latents
        if key not in self._names:
            raise KeyError(key)
        self._decode()
        return self._state.get(key)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _decode(self) -> None:
        if not self._decoded:
            self._decoded = True
            latent = self.latents
            with _quiet():
                _run(self._pipeline, self._rest, self._state)
            self._state.set(_LATENTS, latent)  # some decode in place of it


def accepted(pipeline: Any) -> dict[str, Any]:
    """Name -> default of what a call takes."""
    return inputs(blocks_of(pipeline))


def ignored(pipeline: Any, family: Family, asked: SampleRequest) -> list[str]:
    """What a request says that the blocks have no input for, one line each."""
    takes = accepted(pipeline)
    return [
        f"{name} ignored: the blocks of {family.name} have no such input."
        for name, argument in _ASKED.items()
        if getattr(asked, name) is not None and argument not in takes
    ]


def call_blocks(pipeline: Any, arguments: Mapping[str, Any]) -> Ran:
    """Run a modular pipeline up to the latent, as its own call does.

    Args:
        arguments: by name; others have their defaults.

    Raises:
        Exception: whatever a block raises, unchanged, and not logged again by every block around it.
    """
    from diffusers.modular_pipelines import PipelineState

    state = PipelineState()
    for item in blocks_of(pipeline).inputs:
        if item.name is not None:
            state.set(item.name, arguments.get(item.name, item.default), item.kwargs_type)
    front, _ = stages(blocks_of(pipeline))
    with _quiet():
        _run(pipeline, front, state)
    return Ran(pipeline, state)


def _run(pipeline: Any, blocks: list[tuple[str, Any]], state: Any) -> None:
    import torch

    with torch.no_grad():
        for name, block in blocks:
            with _negative_too(pipeline, name):
                block(pipeline, state)


@contextmanager
def _negative_too(pipeline: Any, name: str) -> Iterator[None]:
    """Encode a negative prompt also when guidance is off, for the blocks of Wan and LTX.

    They ask for its embeddings in any case, of which then no step reads anything; Wan's fail where there are none.
    """
    guider = getattr(pipeline, GUIDER, None)
    asked = name == "text_encoder" and "negative_prompt_embeds" in blocks_of(pipeline).required_inputs
    if not asked or guider is None or guider.num_conditions > 1 or SCALE not in guider.config:
        yield
        return
    setattr(pipeline, GUIDER, guider.new(**{SCALE: 2.0, "enabled": True}))
    try:
        yield
    finally:
        setattr(pipeline, GUIDER, guider)


@contextmanager
def fresh_parts(pipeline: Any, family: Family, request: SampleRequest) -> Iterator[None]:
    """Give `pipeline` guiders, and schedulers beside its first, of its own for one run; its own come back afterwards.

    Both count the steps, and nothing of a cancelled run may reach the next one. The guiders have the scales of the
    request: "off" (1 or less, or 0 in the formulation of the paper) is off, as in other pipelines.
    """
    scales = {GUIDER: request.guidance, f"{GUIDER}_2": request.guidance_2}
    with ExitStack() as undo:
        for name, part in pipeline.components.items():
            if GUIDER in name and hasattr(part, "new"):
                scale = scales.get(name) if family.guidance_argument == GUIDER else None
                fresh = _guider(part, scale)
            elif name != "scheduler" and hasattr(part, "step") and hasattr(part, "from_config"):
                config = {key: value for key, value in part.config.items() if key != "_use_default_values"}
                fresh = type(part).from_config(config)
            else:
                continue
            undo.callback(setattr, pipeline, name, part)
            setattr(pipeline, name, fresh)
        yield


def _guider(guider: Any, scale: float | None) -> Any:
    if scale is None or SCALE not in guider.config:
        return guider.new()
    off = 0.0 if guider.config.get("use_original_formulation") else 1.0
    scale = max(scale, off)
    changes: dict[str, Any] = {SCALE: scale}
    if "enabled" in guider.config:
        changes["enabled"] = not math.isclose(scale, off)
    return guider.new(**changes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the tracebacks that every block logs: a cancel is no error, and an error reaches the caller anyway."""
    logger = logging.getLogger(_LOGGER)

    def is_no_traceback(record: logging.LogRecord) -> bool:
        return "Error in block" not in str(record.msg)

    logger.addFilter(is_no_traceback)
    try:
        yield
    finally:
        logger.removeFilter(is_no_traceback)
