"""Recognising a video VAE and building it from a file or a state dict: by key and shape, nothing left unset."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from .. import safetensors_header
from ..errors import InputError, ModelFileError, first_line
from ..safetensors_header import file_size, is_named_safetensors
from .config import Shapes, VaeConfig, infer_config
from .network.model import VideoVAE

log = logging.getLogger(__name__)

DETECTOR_KEYS = ("encoder.conv_in.weight", "decoder.up_blocks.0.upsamplers.0.upscale_conv.weight")
PREFIXES = ("", "first_stage_model.", "vae.")
OLD_ATTENTION_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GROUPS = "norm_num_groups"
"""Of a file's metadata."""
SHOWN = 4
"""Keys that an error message lists."""


def is_video_vae(source: str | Path | Iterable[str]) -> bool:
    """Return whether a .safetensors file, or the keys of a state dict, are those of a VAE of this architecture.

    False for a file that is missing, truncated or of another format. Only the file's header is read.
    """
    if isinstance(source, (str, Path)):
        try:
            source = read_shapes(Path(source))
        except (OSError, ModelFileError):
            return False
    keys = set(source)
    return any(all(prefix + key in keys for key in DETECTOR_KEYS) for prefix in PREFIXES)


def load_video_vae(
    path: str | Path, dtype: str = "auto", device: str = "auto", config: VaeConfig | None = None
) -> VideoVAE:
    """Load a video VAE from a .safetensors file.

    Args:
        dtype: "float32", "bfloat16", "float16", or "auto": float16, as the released file is stored, on a card, where
            its error is an eighth of bfloat16's; float32 on the CPU.
        device: "auto" takes CUDA where there is one; else a torch device ("cpu", "cuda:1").
        config: sizes, where the file's tensor shapes cannot tell them: other norm groups than 32, unless the file's
            metadata names their number as `norm_num_groups`.

    Raises:
        ModelFileError: the file is missing, truncated, or not a VAE of this architecture: says which keys or shapes.
    """
    path = Path(path)
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    shapes = read_shapes(path)
    if not is_video_vae(shapes):
        reason = f"it is not a video VAE of this kind: it lacks {DETECTOR_KEYS[1]!r}"
        raise ModelFileError("vae", str(path), reason, "choose SeedVR2's ema_vae_fp16.safetensors")
    from safetensors.torch import load_file

    return from_state_dict(
        load_file(path),
        config=config,
        norm_num_groups=read_groups(path),
        dtype=chosen_dtype,
        device=chosen_device,
        name=str(path),
    )


def from_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    *,
    config: VaeConfig | None = None,
    norm_num_groups: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    name: str = "state dict",
) -> VideoVAE:
    """Build a video VAE from tensors, strictly: every key must be there, none may be left over, all shapes must fit.

    Old attention names (`query`, `key`, `value`, `proj_attn`, as matrices or 1x1 convolutions) are mapped, prefixes of
    whole-model files taken off. The given tensors are copied, never changed: a VAE that others hold stays as it is.

    Args:
        config: sizes; None reads them off the shapes.
        norm_num_groups: groups of every GroupNorm, which no shape tells; None stands for 32. Only without a config.
        dtype, device: of the VAE; None keeps those of the tensors.
        name: what to call it in an error.

    Raises:
        ModelFileError: keys or shapes do not fit.
    """
    tensors = rename(state_dict)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    try:
        config = config or infer_config(shapes, norm_num_groups=norm_num_groups)
    except (KeyError, IndexError) as error:
        reason = f"it is not a video VAE of this kind: it lacks {error}"
        raise ModelFileError("vae", name, reason, "choose SeedVR2's ema_vae_fp16.safetensors") from None
    with torch.device("meta"):
        vae = VideoVAE(config)
    check_shapes(shapes, {key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()}, name)
    first = next(iter(tensors.values()))
    dtype, device = dtype or first.dtype, torch.device(device or first.device)
    with torch.no_grad():
        own = {key: tensor.to(device, dtype, copy=True) for key, tensor in tensors.items()}
        vae.load_state_dict(own, strict=True, assign=True)
        return vae.prepare()


def check_shapes(found: Shapes, expected: Shapes, name: str) -> None:
    """Raise ModelFileError unless both hold the same keys with the same shapes."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    different = sorted(key for key in expected.keys() & found.keys() if expected[key] != found[key])
    shapes = [f"{key} is {list(found[key])} instead of {list(expected[key])}" for key in different]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
        for what, keys in (("missing keys", missing), ("unexpected keys", unexpected), ("wrong shapes", shapes))
        if keys
    ]
    if problems:
        cure = "choose SeedVR2's ema_vae_fp16.safetensors, or give its config"
        raise ModelFileError("vae", name, "its tensors do not fit: " + "; ".join(problems), cure)


def rename(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors under this package's names, attention weights as matrices."""
    prefix = next((p for p in PREFIXES if p + DETECTOR_KEYS[0] in state_dict), "")
    tensors: dict[str, torch.Tensor] = {}
    for key, tensor in state_dict.items():
        if not key.startswith(prefix):
            continue
        new = key[len(prefix) :]
        if ".attentions." in new:
            for old_name, new_name in OLD_ATTENTION_NAMES.items():
                new = new.replace(old_name, new_name)
            if tensor.ndim > 2 and tensor.shape[2:].numel() == 1:
                tensor = tensor.flatten(1)
        tensors[new] = tensor
    return tensors


def read_shapes(path: Path, name: str = "vae") -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a .safetensors file, from its header alone.

    Args:
        name: of the input, for the error.

    Raises:
        ModelFileError: no such file, not a safetensors file, or shorter or longer than its header says.
    """
    file_size(path, name)
    if not is_named_safetensors(path):
        raise ModelFileError(name, str(path), "only .safetensors files are read", "convert it to safetensors")
    return safetensors_header.read_shapes(path, name)


def read_groups(path: Path) -> int | None:
    """Return the number of norm groups that a .safetensors file's metadata names; None where it names none.

    Raises:
        ModelFileError: what it names is no such number.
    """
    said = safetensors_header.read_metadata(path, "vae").get(GROUPS)
    if said is None:
        return None
    if not (said.isascii() and said.isdecimal() and len(said) < 5 and int(said)):
        reason = f"its metadata names {said[:20]!r} as {GROUPS}, which is no number of groups"
        raise ModelFileError("vae", str(path), reason, "give its config, or save it again")
    return int(said)


def choose_device(device: str) -> torch.device:
    """Return the device of "auto" or of a torch device name. Raises InputError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = f"torch cannot use it: {first_line(error)}"
        raise InputError("device", device, reason, "use auto or cpu") from None
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of "auto" or of a name. Raises InputError for another name."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if dtype not in DTYPES:
        choices = ", ".join(("auto", *DTYPES))
        raise InputError("dtype", dtype, "it is not one of the choices", f"choose one of: {choices}")
    return DTYPES[dtype]
