"""Save as Diffusers Folder: a model in parts, or in one file, among the models that can be chosen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from comfy_api.latest import io, ui

from ...errors import FastDiffusersError
from ...pipelines.loading.quantized_copy import check_name
from ...pipelines.loading.saving.folder import save_folder
from .. import types
from ..host import comfy_bridge
from ..host.compat import schema
from . import made_download_folder

if TYPE_CHECKING:
    from ...pipelines.types import PipelineHandle

SUFFIX = "-diffusers"
"""What the name of a model's file gets, where no name is given."""


class SaveFolder(io.ComfyNode):
    """A `PipelineHandle` -> a diffusers folder under the first `diffusers` path. Its LoRAs are no part of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="FastDiffusersSaveFolder",
            display_name="Save as Diffusers Folder",
            category=types.CATEGORY,
            search_aliases=["convert", "save model", "save pipeline", "model save", "dequantize", "diffusers folder"],
            inputs=[types.Pipeline.Input("pipeline"), io.String.Input("name", default="")],
            outputs=[io.String.Output(display_name="folder")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str) -> bool | str:
        try:
            if name.strip():
                check_name(name.strip())
        except FastDiffusersError as error:
            return error.in_short()
        return True

    @classmethod
    def execute(cls, pipeline: PipelineHandle, name: str) -> io.NodeOutput:
        name = name.strip() or Path(pipeline.key.source.replace(":", "-")).stem + SUFFIX
        check_name(name)
        parent = made_download_folder()
        with comfy_bridge.NodeProgress(cls.hidden.unique_id).running() as callbacks:
            saved = save_folder(pipeline.key, parent / name, callbacks)
        lines = [str(saved.folder), *(f"{part}: {what}" for part, what in saved.components.items())]
        lines.append(f"{saved.bytes / 2**30:.2f} GiB of weights")
        if pipeline.loras:
            lines.append("its LoRAs are not in it: load them again on the folder")
        return io.NodeOutput(str(saved.folder), ui=ui.PreviewText("\n".join(lines)))
