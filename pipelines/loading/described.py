"""What the configuration files of a diffusers folder say before any weights are read: its family, its scheduler."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from ...errors import ModelFileError
from .. import tiny
from ..families import NETS, Family
from ..modular.blocks import PRETRAINED, all_components, default_blocks
from ..modular.index import BLOCKS, component_folder, is_modular
from ..recognize import family_of_configuration
from ..types import LoadKey
from . import checkpoints
from .parts import denoiser_of_parts
from .small_files import read_json
from .sources import TINY, folder_of

SOUND_STRIDE = 4
"""Frames of a spectrogram to a latent of LTX-2's sound, as its class has it."""
_READ = ("transformer", "scheduler", "unet", "vae")
"""The components whose configuration tells which variant of a family a checkpoint is, and what it can be asked for."""


def family_of_folder(folder: Path) -> Family:
    """The family of a folder, as the loaded pipeline will have it. Raises ModelFileError for an unknown class."""
    import diffusers

    index = checkpoints.read_index(folder)
    name = index["_class_name"]
    pipeline_class = getattr(diffusers, name, None)
    if not isinstance(pipeline_class, type):
        reason = f"its {checkpoints.INDEX} names {name}, which diffusers {diffusers.__version__} does not have"
        raise ModelFileError("model", str(folder), reason, "update diffusers, or choose another model")
    present = checkpoints.components(index)
    parts = {part: _part(folder, index, part, class_name) for part, (_, class_name) in present.items()}
    return family_of_configuration(pipeline_class, index, parts)


@lru_cache(maxsize=64)
def denoiser_of_key(key: LoadKey) -> tuple[type, Mapping[str, Any]] | None:
    """Class and configuration of the denoiser that a key will load; None where only the load tells it."""
    path = folder_of(key)
    if path is None:
        pipeline: Any = tiny.build(key.source.removeprefix(TINY))
        denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
        return type(denoiser), denoiser.config
    if key.parts:
        return denoiser_of_parts(path)
    return _denoiser_of_folder(path) if path.is_dir() else None


@lru_cache(maxsize=64)
def part_configurations(key: LoadKey, names: tuple[str, ...]) -> dict[str, Mapping[str, Any]] | None:
    """The configuration of each of these components that a key's model holds; None where only the load tells it."""
    path = folder_of(key)
    if path is None:
        pipeline: Any = tiny.build(key.source.removeprefix(TINY))
        parts = {name: getattr(pipeline, name, None) for name in names}
        return {name: dict(part.config) for name, part in parts.items() if part is not None}
    if key.parts:
        return {name: {} for name in names if key.holds(name)}
    if not path.is_dir():
        return None
    index = checkpoints.read_index(path)
    held = checkpoints.components(index)
    return {name: configuration(component_folder(path, index, name), name) for name in names if name in held}


def sounds_per_second(parts: Any) -> float | None:
    """Latents of sound that a model makes a second; None of one that makes none with its frames, or does not say.

    Args:
        parts: a pipeline that has an `audio_vae`, as LTX-2.
    """
    if getattr(parts, "audio_vae", None) is None or not hasattr(parts, "audio_vae_temporal_compression_ratio"):
        return None
    return float(parts.audio_sampling_rate / parts.audio_hop_length / parts.audio_vae_temporal_compression_ratio)


@lru_cache(maxsize=64)
def sounds_of_key(key: LoadKey) -> float | None:
    """Latents of sound that a key's model makes a second; None where it makes none, or only the load tells it."""
    path = folder_of(key)
    if path is None:
        return sounds_per_second(tiny.build(key.source.removeprefix(TINY)))
    if key.parts or not path.is_dir():
        return None
    index = checkpoints.read_index(path)
    _, name = checkpoints.components(index).get("audio_vae", ("", ""))
    import diffusers

    kind: Any = getattr(diffusers, name, None) if name else None
    if kind is None:
        return None
    usual = {name: entry.default for name, entry in inspect.signature(kind.__init__).parameters.items()}
    config = usual | configuration(component_folder(path, index, "audio_vae"), "audio_vae")
    rate, hop = config.get("sample_rate"), config.get("mel_hop_length")
    return rate / hop / SOUND_STRIDE if isinstance(rate, int) and isinstance(hop, int) and hop else None


def _denoiser_of_folder(folder: Path) -> tuple[type, dict[str, Any]] | None:
    """Class and configuration of a folder's denoiser; None where it has none, or one of another library."""
    import diffusers

    index = checkpoints.read_index(folder)
    for part in ("transformer", "unet"):
        _, name = checkpoints.components(index).get(part, ("", ""))
        found = getattr(diffusers, name, None) if name else None
        config = configuration(component_folder(folder, index, part), part) if isinstance(found, type) else {}
        if found is not None and config:
            return found, config
    return None


def _part(folder: Path, index: dict[str, Any], part: str, class_name: str) -> dict[str, Any]:
    """A component's configuration where it is read; of one that holds several models, saved side by side, their number.

    They lie as diffusers saves them: "controlnet", "controlnet_1", "controlnet_2" ...
    """
    if "Multi" in class_name and part in ("controlnet", "adapter"):
        return {NETS: 1 + next(index for index in count() if not (folder / f"{part}_{index + 1}").is_dir())}
    return configuration(component_folder(folder, index, part), part) if part in _READ else {}


def scheduler_of_folder(folder: Path) -> Any:
    """The scheduler that a folder's pipeline comes with, without anything else of it; None where it has none."""
    import diffusers

    index = checkpoints.read_index(folder)
    _, name = checkpoints.components(index).get("scheduler", ("", ""))
    scheduler_class = getattr(diffusers, name, None) if name else None
    if not name and is_modular(index):
        return _scheduler_of_blocks(index)
    if scheduler_class is None or not hasattr(scheduler_class, "set_timesteps"):
        return None
    return scheduler_class.from_config(configuration(component_folder(folder, index, "scheduler"), "scheduler"))


def _scheduler_of_blocks(index: Mapping[str, Any]) -> Any:
    """The scheduler that the blocks of a modular pipeline build by themselves; None where they build none."""
    import diffusers

    spec = all_components(default_blocks(getattr(diffusers, index["_class_name"]), index.get(BLOCKS))).get("scheduler")
    return None if spec is None or spec.default_creation_method == PRETRAINED else spec.create()


@lru_cache(maxsize=32)
def scheduler_of_embedded(source: str) -> Any:
    """The scheduler of an embedded tiny pipeline; None where it has none, or several in fixed roles."""
    return getattr(tiny.build(source.removeprefix(TINY)), "scheduler", None)


def configuration(folder: Path, part: str) -> dict[str, Any]:
    """A component's configuration, {} where it cannot be read: what is wrong with it is for the load to say.

    Args:
        folder: the component's own.
    """
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    try:
        return read_json(folder / name)
    except ModelFileError:
        return {}
