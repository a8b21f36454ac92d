"""Making one item of a file of prompts: in this process, or in whichever one it was sent to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...callbacks import SILENT, Callbacks
from ...errors import InputError
from ..files import write_text
from ..media import read_picture
from ..options import lora_specs, optimization_settings, pipeline_handle
from ..videos import unreadable
from .recommended import note_other_measurements
from .request import LATENT, note_what_is_left_out, refuse_latent, result_forms, sample_request

if TYPE_CHECKING:
    import torch

    from ...pipelines.families import Family
    from ...pipelines.types import PipelineHandle, SampleResult
    from .items import Item


@dataclass(frozen=True)
class Made:
    """What came of an item, as plain data.

    Attributes:
        files: names in the folder that it was written to; the report is the last of them.
        summary: the report in one line.
        seeds: of each result.
        seconds: by stage; "load" is among them where the model had to be loaded.
        missing: what of a batch could not be made, and why; "" where all was.
    """

    files: list[str]
    summary: str
    seeds: list[int]
    seconds: dict[str, float] = field(default_factory=dict)
    missing: str = ""


class Maker:
    """Makes items. What it finds out about their models it keeps: one `Maker` is for one run."""

    def __init__(self) -> None:
        self._handles: dict[tuple[str, ...], PipelineHandle] = {}

    def check(self, item: Item) -> None:
        """Find out before anything is loaded what cannot be done.

        Raises:
            InputError, ModelFileError: as `generate`; that a picture is whole is not looked at.
        """
        from ...pipelines.lora import check_loras
        from ...pipelines.requested.before_load import check_before_load
        from ...pipelines.requests import ready

        handle, family = self._handle(item, SILENT)
        optimization_settings(item.args)
        if _is_latent(item):
            refuse_latent(family, "output", item.name)
        target_of(item, Path("."), _makes_video(item, family), family.name)
        request = ready(family, sample_request(item.args, decode=not _is_latent(item), read=shape_of_picture))
        check_before_load(handle.key, request, handle.loras)
        check_loras(handle.loras)

    def make(
        self, item: Item, folder: Path, callbacks: Callbacks = SILENT, facts: dict[str, Any] | None = None
    ) -> Made:
        """Make an item and write it, with its report, into a folder of its own.

        Args:
            folder: empty; what is left in it by a run that fails means nothing.
            facts: what else the report has to say.

        Raises:
            InputError, ModelFileError: as `generate`.
            OSError: it cannot be written.
        """
        from ...pipelines.generate import generate

        handle, family = self._handle(item, callbacks)
        target = target_of(item, folder, _makes_video(item, family), family.name)
        request, settings = sample_request(item.args, decode=not _is_latent(item)), optimization_settings(item.args)
        result = generate(handle, request, settings, callbacks)
        note_other_measurements(item.args.recommended, handle, settings, result)
        return written(item, result, target, folder, facts)

    def _handle(self, item: Item, callbacks: Callbacks) -> tuple[PipelineHandle, Family]:
        from ...pipelines.loading.loader import family_of_key
        from ...pipelines.results import refuse_without_picture

        handle = self._handles.get(item.model)
        if handle is None:
            handle = self._handles[item.model] = pipeline_handle(item.args, callbacks)
        family = family_of_key(handle.key)
        refuse_without_picture(family, sound_counts=False)
        return replace(handle, memory_mode=item.args.memory_mode, loras=lora_specs(item.args)), family


def written(item: Item, result: SampleResult, target: Path, folder: Path, facts: dict[str, Any] | None = None) -> Made:
    """Write the result of an item as its target asks for, with its report, and say what came of it.

    Raises:
        OSError: it cannot be written.
    """
    note_what_is_left_out(item.args, result)
    forms = result_forms(result, target)
    there = forms[0].write(target) if forms else []
    report = result.report
    args, seeds = item.args, list(result.seeds)
    place = {"prompts": args.prompts.name, "line": item.line}
    report.facts.update({"prompt": args.prompt, "seeds": seeds, **place, **(facts or {})})
    write_text(target.with_suffix(".json"), report.as_json())
    files = [*(there if isinstance(there, list) else [target]), target.with_suffix(".json")]
    names = [path.relative_to(folder).as_posix() for path in files]
    return Made(names, report.in_one_line(), list(result.seeds), dict(report.facts.get("seconds", {})), result.missing)


def stem_of(item: Item) -> Path:
    """The item's name without the suffix of a result."""
    name = Path(item.name)
    return name.with_suffix("") if name.suffix else name


def _is_latent(item: Item) -> bool:
    return item.name.endswith(LATENT)


def _makes_video(item: Item, family: Family) -> bool:
    return family.video and item.args.num_frames != 1


def target_of(item: Item, folder: Path, video: bool, maker: str) -> Path:
    """Where the item's result goes; checked against what the model makes, whose name `maker` is."""
    name = Path(item.name)
    if not name.suffix:
        name = name.with_suffix(".mp4" if video else ".png")
    elif not _is_latent(item) and name.suffix.lower() != (".mp4" if video else ".png"):
        made, suffix = ("video", ".mp4") if video else ("pictures", ".png")
        reason = f"{maker} makes {made}, which need {suffix}"
        raise InputError("output", item.name, reason, f"use {stem_of(item).name}{suffix}")
    return folder / name.name


def shape_of_picture(path: Path, name: str = "image", alpha: bool = False) -> torch.Tensor:
    """A tensor of a picture's shape that takes no memory, from the head of its file. Raises as `read_picture`."""
    import torch
    from PIL import Image

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            if picture.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # turned by a quarter
                width, height = height, width
        return torch.zeros(1, 1, 1).expand(height, width, 3)
    except unreadable():
        return read_picture(path, name, alpha)  # says what is wrong with it
