"""Latents in safetensors files: this pack's own, and those of ComfyUI's Save Latent node.

The tensor is in ComfyUI's convention, [B, C, H, W] or [B, C, T, H, W], under the key "samples"; ComfyUI's own files
call it "latent_tensor", and its oldest hold it as Stable Diffusion's denoiser had it. Metadata values are strings, as
the format wants them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .files import replacing
from .keeping import Form

if TYPE_CHECKING:
    import torch

COMFYUI_S = "latent_tensor"
KEYS = ("samples", COMFYUI_S)
NOT_SCALED = "latent_format_version_0"
"""What else ComfyUI's files hold; where it is missing, its Load Latent divides by `OLD_SCALE`."""
OLD_SCALE = 0.18215
SUFFIXES = (".safetensors", ".latent")
WAVEFORM = "waveform"
"""The tensor of the sound beside the latent, [B, channels, samples]; no latent holds it."""
SAMPLE_RATE = "sample_rate"
"""Its rate in the metadata, in Hz."""


def write_latent(
    latent: torch.Tensor, path: Path, metadata: dict[str, str], sound: dict[str, Any] | None = None
) -> None:
    """Write one latent, and the sound that belongs to it, completely or not at all."""
    from safetensors.torch import save_file

    tensors = {"samples": latent.detach().cpu().contiguous()}
    if sound is not None:
        tensors[WAVEFORM] = sound["waveform"].contiguous()
        metadata = {**metadata, SAMPLE_RATE: str(sound["sample_rate"])}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def latent_forms(latent: torch.Tensor, metadata: dict[str, str], sound: dict[str, Any] | None = None) -> list[Form]:
    """How a latent can be written: as it is, and in float16 where it is wider."""
    import torch

    forms = [Form(".safetensors", lambda path: write_latent(latent, path, metadata, sound))]
    if latent.element_size() > 2:
        half = latent.to(torch.float16)
        forms.append(Form(".safetensors", lambda path: write_latent(half, path, metadata, sound), "in float16"))
    return forms


def latent_shape(path: Path) -> tuple[int, ...]:
    """The shape of the latent in a file, [B, C, H, W] or [B, C, T, H, W], from its header alone.

    Raises:
        InputError: as `read_latent`.
    """
    with _opened(path, "np") as (file, name):
        shape = tuple(file.get_slice(name).get_shape())
    if len(shape) not in (4, 5):
        found = "x".join(map(str, shape))
        reason = f"the tensor is {found}; [B, C, H, W] or [B, C, T, H, W] is needed"
        raise InputError("latents", str(path), reason, "save the latent with its batch and channel dimensions")
    return shape


def read_latent(path: Path) -> tuple[torch.Tensor, dict[str, str]]:
    """Read one latent and its metadata.

    Raises:
        InputError: missing, not a safetensors file, several tensors of which none is named as above, or not 4-D or 5-D.
    """
    latent_shape(path)
    with _opened(path, "pt") as (file, name):
        old = name == COMFYUI_S and NOT_SCALED not in file.keys()  # noqa: SIM118 - not a mapping
        # A mapped tensor would change with its file.
        latent = file.get_tensor(name).clone()
        return latent.float() * (1.0 / OLD_SCALE) if old else latent, dict(file.metadata() or {})


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[tuple[Any, str]]:
    """A safetensors file, and the name of the latent in it."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError("latents", str(path), "there is no such file", "check the path")
    if path.suffix.lower() not in SUFFIXES:
        reason = "latents are read from .safetensors (or ComfyUI's .latent) files only"
        raise InputError("latents", str(path), reason, "save them as safetensors")
    try:
        with safe_open(path, framework=framework) as file:
            names = list(file.keys())
            chosen = [name for name in KEYS if name in names] or (names if len(names) == 1 else [])
            if not chosen:
                reason = f"it holds {len(names)} tensors and none is named 'samples'"
                raise InputError("latents", str(path), reason, "name the latent 'samples'")
            yield file, chosen[0]
    except SafetensorError as error:
        reason = f"it is no complete safetensors file ({error})"
        raise InputError("latents", str(path), reason, "save it again") from None


def read_sound(path: Path) -> dict[str, Any] | None:
    """The sound that `write_latent` kept with a latent, in ComfyUI's AUDIO form, or None.

    Raises:
        InputError: there is a waveform, but nothing sensible says how fast it is.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        if WAVEFORM not in file.keys():  # noqa: SIM118 - not a mapping
            return None
        waveform, rate = file.get_tensor(WAVEFORM).clone(), (file.metadata() or {}).get(SAMPLE_RATE, "")
    if waveform.ndim != 3 or not rate.isdecimal() or int(rate) == 0:
        reason = (
            f"its waveform is {list(waveform.shape)} at {rate or 'no'} Hz; [B, channels, samples] and a rate are needed"
        )
        raise InputError("latents", str(path), reason, "save it again")
    return {"waveform": waveform, "sample_rate": int(rate)}
