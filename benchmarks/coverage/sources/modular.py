"""Tiny twins of diffusers' modular pipeline classes: blocks around the components of a classical twin, or around those
that are made here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from ....errors import first_line
from ....pipelines import tiny
from ....pipelines.modular.blocks import blocks_of, default_blocks, without_enhancers
from ....pipelines.modular.blocks import inputs as inputs_of
from ....pipelines.modular.models import CLASSICAL
from ....pipelines.tiny.build import PIPELINE_CLASSES
from ..cases import Case, NotBuilt, modular_classes
from .modular_parts import PREPARED, fitted, prepared
from .twins import CLIPS, PICTURES, SMALL, picture

NAME = "modular twins"
_VARIANTS = re.compile(r"Modular|Distilled|Turbo|Base|(?<=Wan)22|(?<=LTX2)5")
"""What a modular class has in its name that the classical class of the same components has not."""
_OTHER_NAMES = {
    "WanImage2VideoPipeline": "WanImageToVideoPipeline",
    "WanVacePipeline": "WanVACEPipeline",
    "HeliosPyramidPipeline": "HeliosPipeline",
    "Cosmos3Pipeline": "Cosmos3OmniPipeline",
}
_OF_TESTS = ("WanImage2VideoModularPipeline",)
"""Classes that need a component which the embedded twin leaves out."""
_WAN_ANIMATE_2 = {"max_sequence_length": 16, "segment_frame_length": 9}
_FITTING: Mapping[str, Mapping[str, Any]] = {
    "Cosmos3DistilledModularPipeline": {"num_inference_steps": 2, "guidance_scale": 1.0},
    "Flux2ModularPipeline": {"text_encoder_out_layers": (1,)},
    "WanAnimate2DistilledModularPipeline": _WAN_ANIMATE_2,
    "WanAnimate2ModularPipeline": _WAN_ANIMATE_2,
    "LTX25ModularPipeline": {"max_sequence_length": 128},
    "LTX2ModularPipeline": {"max_sequence_length": 128},
}
"""Inputs without which a class cannot run components this small: layers that there are, lengths that divide."""


def cases(classical: Iterable[Case]) -> Iterator[Case | NotBuilt]:
    """One case for every modular class of the installed diffusers.

    Args:
        classical: the cases of classical classes, whose components are taken; the first one of a class counts.
    """
    donors: dict[str, Case] = {}
    for each in classical:
        donors.setdefault(each.pipeline, each)
    for name, pipeline_class in modular_classes().items():
        try:
            build = _builder(name, pipeline_class, donors)
            wanted = inputs(pipeline_class)
        except Exception as error:  # noqa: BLE001 - whatever a class objects to
            yield NotBuilt(name, name, NAME, first_line(error)[:200])
            continue
        yield Case(name, name, NAME, build, partial(dict, wanted))


def _builder(name: str, pipeline_class: Any, donors: dict[str, Case]) -> Callable[[], Any]:
    embedded = {of: family for family, of in PIPELINE_CLASSES.items()}
    base = next((each.__name__ for each in pipeline_class.__mro__ if each.__name__ in embedded), "")
    if base == name:
        return partial(tiny.build, embedded[name])
    if base:  # a variant of it, which runs the same components
        return partial(_around, pipeline_class, partial(tiny.build, embedded[base]))
    own = next((each for each in PREPARED if name.lower().startswith(each)), "")
    if own:
        return partial(_of_parts, pipeline_class, own)
    classical = CLASSICAL.get(name) or _VARIANTS.sub("", name)
    classical = _OTHER_NAMES.get(classical, classical)
    if classical in embedded and name not in _OF_TESTS:
        return partial(_around, pipeline_class, partial(tiny.build, embedded[classical]))
    if classical in donors:
        return partial(_around, pipeline_class, donors[classical].build)
    raise ValueError(f"nothing here makes its components: there is no tiny {classical}")


def _around(pipeline_class: Any, build: Callable[[], Any]) -> Any:
    donor = build()
    return _with(pipeline_class, {**donor.config, **donor.components})


def _of_parts(pipeline_class: Any, name: str) -> Any:
    _, parts = prepared(name)
    return _with(pipeline_class, parts)


def _with(pipeline_class: Any, parts: dict[str, Any]) -> Any:
    """A pipeline of the class with those components and settings that its blocks have a use for."""
    pipeline = pipeline_class()
    blocks = blocks_of(pipeline)
    wanted = {name for name in (*pipeline.component_names, *pipeline._config_specs) if "guider" not in name}
    given = {name: part for name, part in parts.items() if name in wanted and part is not None}
    pipeline.update_components(**given | fitted(pipeline_class.__name__, given))
    without_enhancers(blocks, pipeline.components)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    return pipeline


def inputs(pipeline_class: Any) -> dict[str, Any]:
    """What to call a class with: the small values of all twins, and the pictures and clips that its blocks require."""
    from ....pipelines.recognize import family_of

    blocks = default_blocks(pipeline_class)
    taken = inputs_of(blocks)
    values = {name: value for name, value in SMALL.items() if name in taken}
    family = family_of(pipeline_class)
    if "num_frames" in values and family.known:
        values["num_frames"] = max(family.min_frames, SMALL["num_frames"])
    required = {*family.required, *({family.image_argument} if family.images == "required" else ())}
    for name in required & set(taken):
        if name in PICTURES:
            values[name] = picture(PICTURES[name])
        elif name in CLIPS or name.endswith("video"):
            values[name] = [picture("RGB") for _ in range(SMALL["num_frames"])]
    return values | dict(_FITTING.get(pipeline_class.__name__, {}))
