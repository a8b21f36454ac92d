"""One call of a modular pipeline in two parts: up to the latent, and, where it is asked for, from there to pictures."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ..classes.guidance import GUIDER
from ..classes.outputs import CLIPS, PICTURES, SOUNDS
from .blocks import ENHANCERS, TEXT, blocks_of, inputs, one_by_one, outputs, stages, text_blocks, text_outputs
from .models import SCALE

if TYPE_CHECKING:
    from ..families import Family
    from ..types import SampleRequest

_LOGGER = "diffusers.modular_pipelines.modular_pipeline"
_LATENTS = "latents"
NEGATIVE = "negative_prompt_embeds"
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
        self._pipeline, self._state = pipeline, state
        front, rest = stages(blocks_of(pipeline))
        self._rest = list(one_by_one(rest))
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
        self._decode(sound_alone=key in SOUNDS)
        return self._state.get(key)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _decode(self, sound_alone: bool) -> None:
        """Run what is left of the blocks; for the sound without those that make pictures alone."""
        seen = {*CLIPS, *PICTURES, _LATENTS}
        run = [each for each in self._rest if not (sound_alone and {*outputs(each[1])} <= seen)]
        self._rest = [each for each in self._rest if each not in run]
        latent = self.latents
        with _quiet():
            _run(self._pipeline, run, self._state)
        self._state.set(_LATENTS, latent)  # some decode in place of it


def accepted(pipeline: Any, encoded: bool = False) -> dict[str, Any]:
    """Name -> default of what a call takes.

    Args:
        encoded: whether what the blocks for the text would give is given instead.
    """
    taken = inputs(blocks_of(pipeline))
    return taken | dict.fromkeys(text_outputs(blocks_of(pipeline))) if encoded else taken


def ignored(pipeline: Any, family: Family, asked: SampleRequest) -> list[str]:
    """What a request says that the blocks have no input for, one line each."""
    takes = accepted(pipeline)
    return [
        f"{name} ignored: the blocks of {family.name} have no such input."
        for name, argument in _ASKED.items()
        if getattr(asked, name) is not None and argument not in takes
    ]


def call_blocks(pipeline: Any, arguments: Mapping[str, Any], encoded: bool = False) -> Ran:
    """Run a modular pipeline up to the latent, as its own call does.

    Args:
        arguments: by name; others have their defaults.
        encoded: whether they hold what the blocks for the text would give: these are left out then.

    Raises:
        Exception: whatever a block raises, unchanged, and not logged again by every block around it.
    """
    from diffusers.modular_pipelines import PipelineState

    state = PipelineState()
    for item in blocks_of(pipeline).inputs:
        if item.name is not None:
            state.set(item.name, arguments.get(item.name, item.default), item.kwargs_type)
    front, _ = stages(blocks_of(pipeline))
    if encoded:
        front = _without_text(pipeline, front, arguments, state)
    with _quiet():
        _run(pipeline, front, state)
    return Ran(pipeline, state)


def _without_text(
    pipeline: Any, front: list[tuple[str, Any]], arguments: Mapping[str, Any], state: Any
) -> list[tuple[str, Any]]:
    """The blocks that are left where the texts are encoded, with all that those for the text would give in `state`."""
    blocks = blocks_of(pipeline)
    given = dict(arguments)
    tokens = given.get("prompt_embeds")
    if tokens is not None:
        given |= {"batch_size": len(tokens), "dtype": tokens[0].dtype}
    if NEGATIVE in blocks.required_inputs and given.get(NEGATIVE) is None:
        given[NEGATIVE] = tokens  # the blocks of Wan ask for them in any case; no step reads them without guidance
    for name, kind in text_outputs(blocks).items():
        state.set(name, given.get(name), kind)
    reading = text_blocks(blocks)
    row = [part for part in front if not part[0].startswith(ENHANCERS)]
    return [
        part
        for each in row
        for part in (one_by_one([each]) if each[0] == TEXT else [each])
        if not any(part[1] is block for block in reading)
    ]


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
    asked = name == TEXT and NEGATIVE in blocks_of(pipeline).required_inputs
    if not asked or guider is None or guider.num_conditions > 1 or SCALE not in guider.config:
        yield
        return
    setattr(pipeline, GUIDER, guider.new(**{SCALE: 2.0, "enabled": True}))
    try:
        yield
    finally:
        setattr(pipeline, GUIDER, guider)


@contextmanager
def fresh_parts(
    pipeline: Any, family: Family, request: SampleRequest, controlnets: Sequence[Any] = ()
) -> Iterator[None]:
    """Give `pipeline` guiders, schedulers beside its first, and the control model, of its own for one run; what it had
    comes back afterwards.

    Both count the steps, and nothing of a cancelled run may reach the next one. The guiders have the scales of the
    request: "off" (1 or less, or 0 in the formulation of the paper) is off, as in other pipelines.
    """
    scales = {GUIDER: request.guidance, f"{GUIDER}_2": request.guidance_2}
    with ExitStack() as undo:
        if controlnets:
            undo.callback(setattr, pipeline, "controlnet", pipeline.components.get("controlnet"))
            pipeline.controlnet = controlnets[0]
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
