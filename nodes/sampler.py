"""Diffusers Sampler: prompt in; images or video, with sound where the model makes it, and their latent out."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io, ui

from ..engines.settings import Engine
from ..pipelines.generate import generate
from ..pipelines.loading import loader
from ..pipelines.types import PipelineHandle, SampleRequest
from . import cluster as on_cluster
from . import engine as on_engine
from . import latent_input, sampler_inputs, sampler_outputs, types, vae_engines
from .host import comfy_bridge, memory_management
from .host.compat import schema
from .pictures import pictures
from .settings import with_widgets
from .text import conditioning

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ..cluster.settings import ClusterSettings
    from ..optimizations.settings import CompileSettings, OptimizationSettings
    from ..pipelines.conditions.kinds import Condition


class Sampler(io.ComfyNode):
    """Widgets and sockets -> one `SampleRequest`, one `OptimizationSettings`, and one call of the engine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersSampler",
            display_name="Diffusers Sampler",
            category=types.CATEGORY,
            search_aliases=[
                *("diffusers", "ksampler", "generate", "text to image", "text to video", "image edit"),
                *("xformers", "sage attention", "flash attention", "attention", "teacache", "step cache", "inpaint"),
            ],
            inputs=sampler_inputs.inputs(),
            outputs=sampler_outputs.outputs(),
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        pipeline: PipelineHandle | Engine,
        prompt: str,
        negative_prompt: str,
        seed: int,
        steps: int,
        guidance: float,
        width: int,
        height: int,
        num_frames: int,
        batch_size: int,
        scheduler: str,
        attention: str,
        torch_compile: str,
        vae_tiling: str,
        step_cache: str,
        compile_settings: CompileSettings | None = None,
        settings: OptimizationSettings | None = None,
        images: dict[str, torch.Tensor | None] | None = None,
        last_image: torch.Tensor | None = None,
        latent: dict[str, Any] | None = None,
        strength: float = 1.0,
        guidance_2: float = -1.0,
        frame_rate: float = 0.0,
        max_sequence_length: int = 0,
        decode: bool = True,
        flow_shift: float = 0.0,
        positive: list[Any] | None = None,
        negative: list[Any] | None = None,
        conditions: tuple[Condition, ...] = (),
        cluster: ClusterSettings | None = None,
    ) -> io.NodeOutput:
        request = SampleRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            steps=steps or None,
            guidance=None if guidance < 0 else guidance,
            guidance_2=None if guidance_2 < 0 else guidance_2,
            width=width or None,
            height=height or None,
            num_frames=num_frames or None,
            frame_rate=frame_rate or None,
            seed=seed,
            batch=batch_size,
            scheduler=scheduler,
            flow_shift=flow_shift or None,
            images=_image_list(images),
            last_image=None if last_image is None else pictures("last_image", last_image)[0],
            strength=strength,
            max_sequence_length=max_sequence_length or None,
            decode=decode and pipeline.decodes,
            conditions=conditions or (),
        )
        notes: list[str] = []
        if last_image is not None and (count := last_image.shape[:-3].numel()) > 1:
            notes.append(f"last_image: the first of {count} pictures is used.")
        if latent is not None:
            request, more = latent_input.start_from(latent, loader.family_of_key(pipeline.key), request)
            notes += more
        if positive is not None or negative is not None:
            request, more = conditioning.add_texts(request, loader.family_of_key(pipeline.key), positive, negative)
            notes += more
        optimizations = with_widgets(
            settings,
            attention=attention,
            torch_compile=torch_compile,
            compile_settings=compile_settings,
            vae_tiling=vae_tiling,
            step_cache=step_cache,
            memory_mode=pipeline.memory_mode,
        )
        progress = comfy_bridge.NodeProgress(cls.hidden.unique_id)
        where = nullcontext() if cluster or isinstance(pipeline, Engine) else memory_management.on_card(pipeline)
        with progress.running() as callbacks, where:
            if isinstance(pipeline, Engine):
                result = on_engine.generate(pipeline, request, optimizations, callbacks, cluster)
            elif cluster is None:
                result = generate(pipeline, request, optimizations, callbacks, memory=comfy_bridge.memory_state)
            else:
                result = on_cluster.generate(cluster, pipeline, request, optimizations, callbacks)
            if decode and pipeline.vae is not None:
                vae_engines.decode_result(pipeline.vae, result, optimizations, callbacks)
        if decode and not pipeline.decodes and pipeline.vae is None:
            notes.append("no images: the model was loaded without its VAE; decode the latent with a VAE of its own")
        for note in notes:
            result.report.note(note)
        progress.show_report("Diffusers Sampler", result.report)
        return io.NodeOutput(*sampler_outputs.values(result), ui=ui.PreviewText(result.report.as_table()))


def _image_list(images: Mapping[str, torch.Tensor | None] | None) -> tuple[torch.Tensor, ...]:
    """Return every picture of every connected batch, as [H, W, 3] or, with transparency, [H, W, 4]."""
    given = {name: batch for name, batch in (images or {}).items() if batch is not None}
    return tuple(image for name, batch in given.items() for image in pictures(name, batch))
