"""Quantize Model: a smaller copy of a pipeline, among the models that can be chosen."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io, ui

from ...errors import FastDiffusersError
from ...pipelines.loading.quantized_copy import MAX_RANK, WEIGHTS_DTYPES, copy_name, quantize_folder
from .. import types
from ..host import comfy_bridge
from ..host.compat import ADVANCED, schema
from ..host.model_files import CUSTOM, default_pipeline, download_folder, pipeline_choices, pipeline_source
from . import made_download_folder


class QuantizeModel(io.ComfyNode):
    """Widgets -> a quantized diffusers folder under the first `diffusers` path."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        choices = pipeline_choices()
        return schema(
            node_id="FastDiffusersQuantize",
            display_name="Quantize Model",
            category=types.CATEGORY,
            search_aliases=[
                "quantize",
                "sdnq",
                "int8",
                "uint4",
                "4 bit",
                "8 bit",
                "smaller model",
                "save model",
            ],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=choices,
                    default=default_pipeline(choices),
                    tooltip="The pipeline to copy: a diffusers folder that is not quantized yet. Single files cannot "
                    "be used. Where several paths have one of the same name, the name alone is the first path's; the "
                    f"others say their path. {CUSTOM} takes the field below.",
                ),
                io.String.Input(
                    "custom_model",
                    default="",
                    tooltip=f"Used when model is {CUSTOM}: the path of a diffusers folder, or a Hugging Face Hub id.",
                ),
                io.Combo.Input("weights_dtype", options=list(WEIGHTS_DTYPES), default="int8"),
                io.String.Input("name", default=""),
                io.Int.Input("svd_rank", default=0, min=0, max=MAX_RANK, **ADVANCED),
                io.Boolean.Input("quantized_matmul", default=False, **ADVANCED),
            ],
            outputs=[io.String.Output(display_name="folder")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, model: str, custom_model: str, name: str) -> bool | str:
        try:
            _target(pipeline_source(model, custom_model), "int8", name)
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def execute(
        cls,
        model: str,
        custom_model: str,
        weights_dtype: str,
        name: str,
        svd_rank: int = 0,
        quantized_matmul: bool = False,
    ) -> io.NodeOutput:
        source = pipeline_source(model, custom_model)
        with comfy_bridge.NodeProgress(cls.hidden.unique_id).running() as callbacks:
            copy = quantize_folder(
                source,
                weights_dtype,
                _target(source, weights_dtype, name),
                device=comfy_bridge.device_name("auto"),
                svd_rank=svd_rank,
                quantized_matmul=quantized_matmul,
                library=download_folder(),
                callbacks=callbacks,
            )
        gib = 2**30
        lines = [f"{part}: {what or 'nothing large enough to quantize'}" for part, what in copy.components.items()]
        lines.append(f"{copy.bytes_before / gib:.2f} GiB of weights before, {copy.bytes_after / gib:.2f} GiB now")
        return io.NodeOutput(str(copy.folder), ui=ui.PreviewText("\n".join([str(copy.folder), *lines])))


def _target(source: str, weights_dtype: str, name: str) -> Path:
    """The folder to write. Raises InputError for a name that is not a single folder's, or where none can be made."""
    name = copy_name(source, weights_dtype, name)
    return made_download_folder() / name
