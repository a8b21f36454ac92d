"""Control models: named and checked without reading weights, then loaded beside a pipeline and freed with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...callbacks import Callbacks
from ...errors import ModelFileError
from ...optimizations.components import denoisers
from .. import tiny
from ..loading.progress import reading_errors
from ..loading.small_files import identity_of, plain_path, read_json
from ..loading.sources import TINY
from .control import check_fits, control_models, described
from .controls.configurations import modes_of
from .controls.files import CONFIG, CURE, check_tensors, configuration, read_file, resolve_file
from .holding import hold
from .kinds import ControlNetKey
from .masks import repaints

if TYPE_CHECKING:
    from ...report import OptimizationReport
    from ..types import LoadedPipeline, SampleRequest

_BORROWED = (
    *("t_scale", "t_embedder", "all_x_embedder", "cap_embedder", "rope_embedder", "noise_refiner"),
    *("context_refiner", "x_pad_token", "cap_pad_token"),
)
"""What Z-Image's control model takes of the transformer while a pipeline holds both."""


def resolve_controlnet(source: str) -> ControlNetKey:
    """Check a control model without reading its weights.

    Args:
        source: path of its diffusers folder or its .safetensors file, or "tiny:<family>" for an embedded one.

    Raises:
        ModelFileError, InputError: there is none, or it is none of diffusers' ControlNets with .safetensors weights.
    """
    if source.startswith(TINY):
        return ControlNetKey(source, "seed 0", tiny.controlnet_class(source.removeprefix(TINY)))
    folder = plain_path("controlnet", source, ModelFileError).absolute()
    if folder.is_file():
        return _checked(resolve_file(folder))
    if not (folder / CONFIG).is_file():
        reason = "there is no config.json in it" if folder.is_dir() else "there is no such folder or file"
        raise ModelFileError("controlnet", str(folder), reason, CURE)
    config = read_json(folder / CONFIG)
    class_name = str(config.get("_class_name", ""))
    key = _checked(ControlNetKey(str(folder), "", class_name, modes_of(config)))
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelFileError("controlnet", str(folder), "there are no .safetensors weights in it", CURE)
    return replace(key, identity=identity_of((folder / CONFIG, *weights)))


def _checked(key: ControlNetKey) -> ControlNetKey:
    """The key. Raises ModelFileError where its class is no ControlNet of diffusers."""
    if not is_controlnet(key.class_name):
        reason = f"it holds a {key.class_name or 'model of no named class'}, which is no ControlNet of diffusers"
        raise ModelFileError("controlnet", key.source, reason, CURE)
    return key


def find_controlnets(folder: Path, depth: int = 3) -> list[Path]:
    """The control models' folders below a folder, sorted; those inside of a pipeline's folder belong to that."""
    found: list[Path] = []
    try:
        for child in sorted(path for path in folder.iterdir() if path.is_dir()):
            if (child / CONFIG).is_file():
                of_file = child.with_name(f"{child.name}.safetensors").is_file() and not any(
                    child.glob("*.safetensors")
                )
                found += [child] if _holds_controlnet(child) and not of_file else []
            elif depth > 1 and not (child / "model_index.json").is_file():
                found += find_controlnets(child, depth - 1)
    except OSError:  # unreadable or vanished: there is nothing to offer
        pass
    return found


def _holds_controlnet(folder: Path) -> bool:
    try:
        return "ControlNet" in str(read_json(folder / CONFIG).get("_class_name", ""))
    except ModelFileError:
        return False


def is_controlnet(class_name: str) -> bool:
    """Whether diffusers has a ControlNet of this class."""
    import diffusers

    return "ControlNet" in class_name and "Multi" not in class_name and hasattr(diffusers, class_name)


def check_controls_fit(request: SampleRequest, denoiser: Mapping[str, Any], name: str) -> None:
    """Raise InputError for a control model that does not fit a denoiser, by its configuration file alone."""
    for key in control_models(request):
        if not key.source.startswith(TINY):
            _fitting(key, denoiser, name)


def _fitting(key: ControlNetKey, denoiser: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration of a control model that fits a denoiser. Raises InputError for one that does not."""
    config = configuration(key, denoiser)
    check_fits(key, config, denoiser, name)
    check_tensors(key, config)
    return config


@contextmanager
def controlled(
    loaded: LoadedPipeline, request: SampleRequest, callbacks: Callbacks, report: OptimizationReport
) -> Iterator[list[Any]]:
    """The control models of a run, on the device where the pipeline computes.

    They stay with the pipeline, for the next run; those that this one does not want are freed. Where the memory mode
    keeps weights off the device, they leave it after the run.

    Raises:
        InputError: one was made for another model.
        ModelFileError: one cannot be read.
    """
    keys = control_models(request)
    models = hold(loaded.controlnets, keys, lambda key: _read(key, loaded), callbacks)
    denoiser: Any
    for denoiser in denoisers(loaded.pipeline).values():
        for key in keys:
            check_fits(key, loaded.controlnets[key].config, denoiser.config, loaded.family.name)
    if keys:
        repainted = bool(repaints(loaded.family, request))
        report.facts["control"] = "; ".join(described(loaded.family, request, repainted))
    try:
        for model in models:
            model.to(loaded.device)
        yield models
    finally:
        stays = "memory_mode" not in report or report["memory_mode"].applied in ("gpu", "on the cpu")
        for model in models:
            for name in _BORROWED if type(model).__name__ == "ZImageControlNetModel" else ():
                setattr(model, name, None)
            if not stays:
                model.to("cpu")


def _read(key: ControlNetKey, loaded: LoadedPipeline) -> Any:
    import diffusers

    with reading_errors(Path(key.source)):
        if key.source.startswith(TINY):
            model: Any = tiny.build_controlnet(key.source.removeprefix(TINY), dtype=loaded.dtype)
        else:
            if resolve_controlnet(key.source) != key:
                reason = "its files changed since they were checked"
                raise ModelFileError("controlnet", key.source, reason, "run again")
            if Path(key.source).is_file():
                denoiser: Any = next(iter(denoisers(loaded.pipeline).values()))
                config = _fitting(key, denoiser.config, loaded.family.name)
                return read_file(key, config, loaded.dtype).requires_grad_(False)
            made = getattr(diffusers, key.class_name)
            options = {"torch_dtype": loaded.dtype, "use_safetensors": True, "local_files_only": True}
            model = made.from_pretrained(key.source, **options)
    return model.eval().requires_grad_(False)
