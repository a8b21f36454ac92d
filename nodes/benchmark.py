"""Benchmark Optimizations: measure settings on one pipeline, draw what was found, hand on what is best."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import io, ui

from ..comparison.chart import chart
from ..comparison.choices import ALL, CHOICES, PLAIN, parse
from ..comparison.presets import PRESETS
from ..comparison.run import ComparisonRun, working
from ..comparison.shown import ComparisonReport, summary
from ..comparison.table import as_table
from ..errors import FastDiffusersError
from ..optimizations.settings import CompileSettings, OptimizationSettings
from ..optimizations.tuning.candidates import Plan
from ..optimizations.tuning.store import default_store
from ..pipelines.families import MAX_FRAMES, MAX_SIZE
from ..pipelines.generate import generate
from ..pipelines.loading import loader
from ..pipelines.requests import MAX_STEPS
from ..pipelines.types import SampleRequest
from ..report import logger as run_logger
from . import types
from .host import comfy_bridge, memory_management
from .host.compat import ADVANCED, schema
from .pictures import pictures

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..comparison.result import Comparison
    from ..pipelines.types import PipelineHandle

NO_PRESET = "none"
EVERYTHING = "all that work here"
OFFERED = {EVERYTHING: ALL} | {f"{one.name}: {one.help}": one.name for one in CHOICES.values() if one.name != PLAIN}
"""What the list offers -> what it stands for. A graph may hold anything else that `choices.parse` reads."""
PROMPT = "a fox in the snow at dawn, detailed fur, soft light"


class BenchmarkOptimizations(io.ComfyNode):
    """Pipeline -> the fastest settings, a table, a chart; and measurements for "auto"."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersBenchmark",
            display_name="Benchmark Optimizations",
            category=types.CATEGORY,
            search_aliases=["benchmark", "speed test", "compare settings", "tune", "fastest", "speed"],
            inputs=[*_what_to_compare(), *_the_work()],
            outputs=[
                types.OptimizationSettings.Output(display_name="settings"),
                io.Image.Output(display_name="chart"),
                io.String.Output(display_name="table"),
                types.Report.Output(display_name="report"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, compare: str, compare_also: str = "") -> bool | str:
        try:
            parse(_names(compare, compare_also))
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle,
        compare: str,
        runs: int,
        time_limit: float,
        prompt: str,
        steps: int,
        width: int,
        height: int,
        num_frames: int,
        guidance: float,
        seed: int,
        compile_settings: CompileSettings | None = None,
        image: torch.Tensor | None = None,
        remember: bool = True,
        preset: str = NO_PRESET,
        compare_also: str = "",
    ) -> io.NodeOutput:
        compare = _names(compare, compare_also)
        shown = () if image is None else pictures("image", image)
        notes = (f"image: the first of {len(shown)} pictures is used",) if len(shown) > 1 else ()
        chosen = PRESETS.get(preset)
        if chosen is not None:
            chosen.check(loader.family_of_key(pipeline.key).name)
            compare = chosen.compare if compare == ALL else compare
        request = SampleRequest(
            prompt=prompt,
            steps=steps or None,
            guidance=None if guidance < 0 else guidance,
            width=width or None,
            height=height or None,
            num_frames=num_frames or None,
            seed=seed,
            images=tuple(shown[:1]),
        )
        run = ComparisonRun(
            pipeline,
            request if chosen is None else chosen.apply(request),
            parse(compare, lambda names: _working(names, pipeline)),
            Plan(runs=runs, time_limit=time_limit or None),
            base=OptimizationSettings.plain(compile=compile_settings or CompileSettings()),
            store=default_store() if remember else None,
            combine_winners=ALL in compare.split(","),
            notes=notes if chosen is None else (*notes, *chosen.notes(pipeline.loras)),
            generate=partial(generate, memory=comfy_bridge.memory_state),
        )
        progress = comfy_bridge.NodeProgress(cls.hidden.unique_id)
        try:
            with progress.running() as callbacks, memory_management.on_card(pipeline):
                run.run(callbacks)
        finally:
            if run.started:  # after a cancel the node has no output, but it still shows what was found
                progress.show_text(comfy_bridge.LINE_BREAK.join(summary(run.result())))
        found = run.result()
        run_logger.info("FastDiffusers, Benchmark Optimizations: %s", found.verdict)
        picture = _as_image(found)
        shown = ui.PreviewImage(picture, cls=cls)
        return io.NodeOutput(found.recommended.settings, picture, as_table(found), ComparisonReport(found), ui=shown)


def _what_to_compare() -> list[io.Input]:
    return [
        types.Pipeline.Input("pipeline"),
        io.Combo.Input("compare", options=list(OFFERED), default=EVERYTHING),
        io.Int.Input("runs", default=5, min=1, max=100),
        io.Float.Input("time_limit", default=0.0, min=0.0, max=86400.0, step=10.0),
    ]


def _the_work() -> list[io.Input]:
    return [
        io.String.Input("prompt", default=PROMPT, multiline=True),
        io.Int.Input("steps", default=0, min=0, max=MAX_STEPS),
        io.Int.Input("width", default=0, min=0, max=MAX_SIZE, step=8),
        io.Int.Input("height", default=0, min=0, max=MAX_SIZE, step=8),
        io.Int.Input("num_frames", default=0, min=0, max=MAX_FRAMES),
        io.Float.Input("guidance", default=-1.0, min=-1.0, max=100.0, step=0.1, round=0.001),
        io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate="fixed"),
        types.CompileSettings.Input("compile_settings", optional=True),
        io.Image.Input("image", optional=True),
        io.Boolean.Input("remember", default=True, optional=True, **ADVANCED),
        io.Combo.Input(
            "preset",
            options=[NO_PRESET, *PRESETS],
            default=NO_PRESET,
            optional=True,
            tooltip=f"A known case. It fills in what is left open: 'compare' at '{EVERYTHING}', and the work at the "
            f"model's defaults (0, or -1). {'; '.join(f'{one.name}: {one.help}' for one in PRESETS.values())}. "
            "LoRAs come with the pipeline, through Load LoRA.",
        ),
        io.String.Input(
            "compare_also",
            default="",
            optional=True,
            tooltip="More to compare: names separated by commas, joined with + to combine, such as "
            f"'fused,compile+xformers'. The names: {', '.join(CHOICES)}.",
            **ADVANCED,
        ),
    ]


def _names(compare: str, also: str) -> str:
    """Everything that is to be compared, as `choices.parse` takes it."""
    return ",".join(filter(None, (OFFERED.get(compare, compare).strip(), also.strip(" ,"))))


def _working(names: Iterable[str], pipeline: PipelineHandle) -> list[str]:
    return working(names, torch.device(pipeline.key.device), getattr(torch, pipeline.key.dtype))


def _as_image(comparison: Comparison) -> torch.Tensor:
    """The chart as ComfyUI's IMAGE, [1, H, W, 3] in 0..1."""
    picture = chart(comparison)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.reshape(1, picture.height, picture.width, 3).float() / 255
