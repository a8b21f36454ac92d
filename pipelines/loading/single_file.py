"""Whole pipelines in one .safetensors file: told apart by their header, read by diffusers' `from_single_file`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelFileError, first_line
from ...safetensors_header import DOWNLOAD_AGAIN, read_shapes
from . import checkpoints
from .parts import PUBLISHED, write_configurations
from .parts.header import is_lora
from .progress import reading_errors

if TYPE_CHECKING:
    import torch

PIPELINE_CLASSES = {
    "flux": "FluxPipeline",
    "sd35": "StableDiffusion3Pipeline",
    "sd3": "StableDiffusion3Pipeline",
    "xl": "StableDiffusionXLPipeline",
    "playground": "StableDiffusionXLPipeline",
    "v1": "StableDiffusionPipeline",
    "v2": "StableDiffusionPipeline",
}
"""Beginning of diffusers' name for a kind of checkpoint -> the pipeline that reads it, the longest match first."""


def pipeline_class_of(path: Path) -> str:
    """The diffusers pipeline that reads a single .safetensors file, told from its header alone.

    Raises:
        ModelFileError: damaged, or a kind of checkpoint that no pipeline reads from one file.
    """
    return kind_of(path)[1]


def kind_of(path: Path) -> tuple[str, str]:
    """diffusers' name for the kind of a checkpoint, and the pipeline that reads it.

    Raises:
        ModelFileError: damaged, or a kind of checkpoint that no pipeline reads from one file.
    """
    import torch
    from diffusers.loaders.single_file_utils import infer_diffusers_model_type

    shapes = read_shapes(path)
    if is_lora(shapes):
        cure = "give the model that it changes, and this file to Load LoRA (Diffusers) or --lora"
        raise ModelFileError("model", str(path), "it is a LoRA, which changes a model and is none", cure)
    has_vae = any(name.startswith(("first_stage_model.", "vae.")) for name in shapes)
    with reading_errors(path):  # the shapes of a file that is no model need not have as many sizes as are looked at
        empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        kind = infer_diffusers_model_type(empty)
    for beginning, pipeline_class in PIPELINE_CLASSES.items():
        if kind.startswith(beginning) and has_vae:
            return kind, pipeline_class
    reason = "it holds only a part of a model (no VAE)" if not has_vae else f"diffusers reads no {kind} from one file"
    raise ModelFileError("model", str(path), reason, "use the model's folder in diffusers format")


def read(path: Path, dtype: torch.dtype, comfyui: str = "") -> Any:
    """The pipeline in a file that `pipeline_class_of` recognises, on the CPU.

    Args:
        comfyui: folder of a ComfyUI, whose tokenizers are used; "" for none.
    """
    import diffusers

    kind, name = kind_of(path)
    pipeline_class = getattr(diffusers, name)
    # A single file holds weights only. The configurations come from a folder of the same name beside it, where there
    # is one, else from this pack and a ComfyUI where both know the kind, else from the Hub (or its cache) by diffusers.
    places = (path.with_suffix(""), path.resolve().with_suffix(""))  # of a link, and of what it leads to
    beside = next((place for place in places if (place / checkpoints.INDEX).is_file()), None)
    with tempfile.TemporaryDirectory() as made:
        if beside is None and write_configurations(kind, read_shapes(path), name, comfyui, Path(made)):
            beside = Path(made)
        config = {"config": str(beside), "local_files_only": True} if beside else {}
        try:
            return pipeline_class.from_single_file(str(path), torch_dtype=dtype, **config)
        except NotImplementedError as error:
            if "meta tensor" not in str(error):  # of weights that stayed without data
                raise
            raise ModelFileError("model", str(path), "tensors of it are missing", DOWNLOAD_AGAIN) from error
        except OSError as error:  # what the Hub's client raises is one
            if beside is not None or kind not in PUBLISHED:
                raise
            reason = f"its tokenizer is not on this machine, and the Hub is out of reach ({first_line(error, 80)})"
            raise ModelFileError("model", str(path), reason, "name a ComfyUI with COMFYUI_PATH=FOLDER") from error
