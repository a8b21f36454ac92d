"""The cases of diffusers' own tests, from a checkout of its repository: what they build, and what they call it with.

Nothing of them is part of the pack: `--cases FOLDER` names the checkout. They import pytest, parameterized and
requests_mock.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ....errors import first_line
from ..cases import Case, NotBuilt, Source
from .twins import picture

NAME = "diffusers' tests"
_SKIPPED: tuple[type[BaseException], ...] = (unittest.SkipTest,)
with contextlib.suppress(ImportError):
    from _pytest.outcomes import Skipped

    _SKIPPED = (*_SKIPPED, Skipped)
_ENCODERS, _EXTRACTORS = ("image_encoder", "depth_estimator"), ("feature_extractor", "image_processor")
_AT_224 = "StableVideoDiffusionPipeline"
_OF_LATENTS = "StableDiffusionLatentUpscalePipeline"
"""Whose tests start from latents, where a user has a picture."""
_NEEDED = ("get_dummy_components", "get_dummy_inputs")


def source(folder: Path) -> Source:
    """The cases below `folder`/tests/pipelines."""
    return lambda: _cases(folder.resolve())


def _cases(folder: Path) -> Iterator[Case | NotBuilt]:
    sys.path.insert(0, str(folder))
    for path in sorted((folder / "tests/pipelines").rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if not all(name in text for name in _NEEDED):
            continue
        label = path.relative_to(folder / "tests/pipelines").as_posix().removesuffix(".py")
        module = ".".join(path.relative_to(folder).with_suffix("").parts)
        try:
            members = vars(importlib.import_module(module))
        except Exception as error:  # noqa: BLE001 - a test of a newer release, or a package that is missing
            yield NotBuilt(label, "", NAME, f"cannot be imported: {first_line(error)}")
            continue
        seen = set()
        for name, each in members.items():
            if not isinstance(each, type) or each.__module__ != module or not _is_case(each):
                continue
            same = tuple(getattr(each, item) for item in ("pipeline_class", *_NEEDED))
            if same not in seen:
                seen.add(same)
                yield _case(f"{label} {name}", each)


def _is_case(each: type) -> bool:
    has_parts = all(callable(getattr(each, name, None)) for name in _NEEDED)
    return has_parts and isinstance(getattr(each, "pipeline_class", None), type)


def _case(name: str, test: Any) -> Case:
    """Components are made once more for every build, with the same seed."""

    def owner() -> Any:
        try:
            made = test()
        except (TypeError, ValueError):  # a unittest case wants the name of a test
            made = test(next(item for item in dir(test) if item.startswith("test_")))
        with contextlib.suppress(Exception, *_SKIPPED):  # of a pipeline that diffusers calls deprecated, say
            made.setUp()
        return made

    def build() -> Any:
        own = owner()
        torch.manual_seed(0)
        parameters = inspect.signature(own.get_dummy_components).parameters.values()
        missing = [item.name for item in parameters if item.default is item.empty and item.kind < item.VAR_POSITIONAL]
        parts = own.get_dummy_components(*("full_adapter" for _ in missing))
        pipeline = test.pipeline_class(**parts)
        pipeline.set_progress_bar_config(disable=True)
        if test.pipeline_class.__name__ == _AT_224:
            _read_in_full(pipeline)
        for part in pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        _fit_extractor(pipeline)
        return pipeline

    def inputs() -> dict[str, Any]:
        take = owner().get_dummy_inputs
        parameters = inspect.signature(take).parameters.values()
        wanted = [item for item in parameters if item.default is item.empty and item.kind < item.VAR_POSITIONAL]
        values = dict(take(*("cpu" for _ in wanted)))
        if test.pipeline_class.__name__ == _OF_LATENTS:
            values["image"] = picture("RGB")
        return values

    return Case(name, test.pipeline_class.__name__, NAME, build, inputs)


def _fit_extractor(pipeline: Any) -> None:
    """Let pictures be prepared in the size that the small image encoder reads: the tests hand over tensors, which are
    not prepared."""
    encoder, extractor = (_first(pipeline, names) for names in (_ENCODERS, _EXTRACTORS))
    size = getattr(getattr(encoder, "config", None), "image_size", None)
    if not isinstance(size, int) or extractor is None:
        return
    square = {"height": size, "width": size}
    extractor.size = {"shortest_edge": size} if getattr(extractor, "crop_size", None) else square
    if getattr(extractor, "crop_size", None):
        extractor.crop_size = square


def _read_in_full(pipeline: Any) -> None:
    """An image encoder for 224 pixels in place of the small one: what this class brings every picture to."""
    config = type(pipeline.image_encoder.config)(
        **{**pipeline.image_encoder.config.to_dict(), "image_size": 224, "patch_size": 32}
    )
    pipeline.register_modules(image_encoder=type(pipeline.image_encoder)(config))


def _first(pipeline: Any, names: tuple[str, ...]) -> Any:
    return next((part for name in names if (part := getattr(pipeline, name, None)) is not None), None)
