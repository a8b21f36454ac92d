"""The embedded tiny Z-Image as the files that ComfyUI takes, to try a graph with: random weights, no download."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ....cache_folder import cache_folder, filled
from ....errors import ModelFileError
from ... import tiny
from .component import Weights

NAME = "z-image"
FILES = {
    "transformer": "tiny_z_image.safetensors",
    "text_encoder": "tiny_qwen_3.safetensors",
    "vae": "tiny_ae.safetensors",
}
"""Component -> its file. Configurations and tokenizer lie beside the first, as no published model has these sizes."""
_FORM = 1
"""Number of this layout of files: another one goes into a folder of its own."""
_ATTENTION = {".to_out.0.": ".out.", ".norm_q.": ".q_norm.", ".norm_k.": ".k_norm."}
_TOP = {"all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder."}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_LEVELS = 4
"""Of the VAE; its decoder's are counted from the other end than diffusers counts them."""


def embedded_parts() -> dict[str, Path]:
    """Component -> its file. The first call writes them into the cache folder: a few MB, always the same.

    Raises:
        ModelFileError: the folder cannot be written.
    """
    folder = cache_folder() / f"embedded_parts_{_FORM}"
    files = {component: folder / name for component, name in FILES.items()}
    if not all(file.is_file() for file in files.values()):
        try:
            with filled(folder, *FILES.values()) as made:
                _write(made)
        except OSError as error:
            cure = "set FASTDIFFUSERS_CACHE to a folder that can be written"
            raise ModelFileError("diffusion_model", NAME, f"it cannot be written ({error})", cure) from error
    return files


def _write(folder: Path) -> None:
    from safetensors.torch import save_file

    pipeline: Any = tiny.build("zimage")
    named = {
        "transformer": _zimage(pipeline.transformer.state_dict()),
        "text_encoder": {f"model.{name}": value for name, value in pipeline.text_encoder.state_dict().items()},
        "vae": _vae(pipeline.vae.state_dict()),
    }
    for component, tensors in named.items():
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, folder / FILES[component])
    with tempfile.TemporaryDirectory(dir=folder) as whole:
        pipeline.save_pretrained(whole)
        for file in Path(whole).glob("*/*"):
            if file.suffix != ".safetensors":
                place = folder / Path(FILES["transformer"]).stem / file.parent.name
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, place / file.name)


def _zimage(state: Weights) -> Weights:
    """Z-Image's own names: one layer for queries, keys and values."""
    import torch

    named: Weights = {}
    for name, value in state.items():
        if ".to_k." in name or ".to_v." in name:
            continue
        if ".to_q." in name:
            value = torch.cat([state[name.replace("to_q", side)] for side in ("to_q", "to_k", "to_v")])
            name = name.replace(".to_q.", ".qkv.")
        named[_renamed(name, _ATTENTION | _TOP)] = value
    return named


def _vae(state: Weights) -> Weights:
    """The names of latent diffusion's code."""
    named: Weights = {}
    for name, value in state.items():
        name = re.sub(r"(down|up)_blocks\.(\d)\.", _level, name)
        name = re.sub(r"resnets\.(\d)", r"block.\1", name) if "mid_block" not in name else name
        name = re.sub(r"(down|up)samplers\.0", r"\1sample", name).replace("conv_shortcut", "nin_shortcut")
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        name = name.replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0." in name:
            name = _renamed(name.replace("mid_block.attentions.0.", "mid.attn_1."), _VAE_ATTENTION)
            value = value[:, :, None, None] if value.ndim == 2 else value
        named[name] = value
    return named


def _level(found: re.Match[str]) -> str:
    number = int(found[2])
    return f"{found[1]}.{number if found[1] == 'down' else _LEVELS - 1 - number}."


def _renamed(name: str, pieces: dict[str, str]) -> str:
    for old, new in pieces.items():
        name = name.replace(old, new)
    return name
