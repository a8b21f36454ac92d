"""A model whose components have shapes and no data: from a folder's configurations, or a published architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...comparison.architectures import ARCHITECTURES
from ...errors import InputError, ModelFileError, first_line
from ...pipelines import tiny
from ...pipelines.families import Family
from ...pipelines.loading import checkpoints, described, hub
from ...pipelines.loading.devices import default_dtype
from ...pipelines.loading.hub_client import HuggingFace
from ...pipelines.loading.sources import TINY
from ...pipelines.modular.index import component_folder
from ...pipelines.recognize import family_of, small

OPTION = "--plan"
TAKEN = f"give a diffusers folder, the id of a model in the Hub's cache, tiny:<family>, or {', '.join(ARCHITECTURES)}"
QUANTIZED = "quantization_config"
"""Entry of a component's configuration that says how its weights are quantized."""
DTYPE = torch.bfloat16
"""What cards load by default."""


class Skeleton:
    """What the memory estimates ask of a pipeline.

    Args:
        components: by name; those that have weights are modules.
        config: what the pipeline was built with.
        offload_order: `model_cpu_offload_seq` of its class, None where it has none.
    """

    def __init__(self, components: Mapping[str, Any], config: Mapping[str, Any], offload_order: str | None) -> None:
        self.components = dict(components)
        self.config = dict(config)
        self.model_cpu_offload_seq = offload_order
        self.vae = self.components.get("vae")

    def with_weights(self, parts: Mapping[str, nn.Module]) -> Skeleton:
        """The same with other modules in the place of some."""
        return Skeleton({**self.components, **parts}, self.config, self.model_cpu_offload_seq)


@dataclass(frozen=True)
class Model:
    """What is planned for. Attributes: name, to show; skeleton; family; libraries, of each component, and its class;
    quantized, how the components are stored that are: "sdnq int8"."""

    name: str
    skeleton: Skeleton
    family: Family
    libraries: Mapping[str, tuple[str, str]]
    quantized: Mapping[str, str] = field(default_factory=dict)


class Stored(nn.Module):
    """Stands for weights of which only the size is known. Args: size in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.empty(size, dtype=torch.uint8, device="meta"))


def model_of(source: str) -> Model:
    """The model that a user names.

    Raises:
        InputError: there is none of that name, or it is one whose sizes cannot be told without loading it.
    """
    if source in ARCHITECTURES:
        return _architecture(source)
    if source.startswith(TINY):
        return _embedded(source.removeprefix(TINY))
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path.resolve(), str(path))
    if path.is_file():
        raise InputError(
            OPTION, source, "of a single file only the denoiser's sizes are known before it is loaded", TAKEN
        )
    if not hub.is_hub_id(source):
        raise InputError(OPTION, source, "there is no such folder and no such architecture", TAKEN)
    cached = HuggingFace().cached_folder(source, "")
    if cached is None:
        raise InputError(OPTION, source, "it is not in the Hub's cache on this machine", f"load it once, or {TAKEN}")
    return _folder(cached[1], source)


def _architecture(name: str) -> Model:
    architecture = ARCHITECTURES[name]
    with _without_data():
        modules = architecture.published()
    pipeline_class = _pipeline_class(tiny.PIPELINE_CLASSES[architecture.family])
    config = {"boundary_ratio": None}
    skeleton = Skeleton(modules, config, _offload_order(pipeline_class))
    return Model(architecture.name, skeleton, family_of(pipeline_class.__name__), _libraries(modules))


def _embedded(name: str) -> Model:
    if name not in tiny.PIPELINE_CLASSES:
        cure = f"choose one of: {', '.join(TINY + known for known in tiny.PIPELINE_CLASSES)}"
        raise InputError(OPTION, TINY + name, "there is no embedded pipeline of that name", cure)
    pipeline: Any = tiny.build(name, dtype=DTYPE)
    skeleton = Skeleton(pipeline.components, pipeline.config, _offload_order(pipeline))
    family = small(family_of(pipeline), trained=tiny.trained_folder(name) is not None)
    return Model(TINY + name, skeleton, family, _libraries(pipeline.components))


def _folder(folder: Path, name: str) -> Model:
    try:
        index = checkpoints.read_index(folder)
        family = described.family_of_folder(folder)
        libraries = checkpoints.components(index)
        places = {part: component_folder(folder, index, part) for part in libraries}
    except ModelFileError as error:
        raise InputError(OPTION, name, error.reason, TAKEN) from None
    made = {part: _component(places[part], part, *entry, name) for part, entry in libraries.items()}
    modules = {part: module for part, module in made.items() if module is not None}
    pipeline_class = _pipeline_class(index["_class_name"])
    order = _offload_order(pipeline_class)
    configs = {part: described.configuration(places[part], part).get(QUANTIZED) for part in modules}
    quantized = {part: _how(config) for part, config in configs.items() if config is not None}
    return Model(name, Skeleton(modules, index, order), family, libraries, quantized)


def _how(config: Any) -> str:
    """How weights are quantized, as their configuration says it: by what, and to what."""
    said = config if isinstance(config, Mapping) else {}
    entries = [said.get(name) for name in ("weights_dtype", "bnb_4bit_quant_type", "quant_type")]
    entries += ["int8" if said.get("load_in_8bit") else None]
    kinds = [entry for entry in entries if isinstance(entry, str)]
    return " ".join([str(said.get("quant_method", "quantized")), *kinds[:1]])


def _component(folder: Path, part: str, library: str, class_name: str, name: str) -> nn.Module | None:
    """One component without data, or its size alone where its weights are quantized; None where it has no weights.

    Args:
        folder: the component's own.
        name: of the model, for errors.
    """
    import diffusers
    import transformers

    kind = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), class_name, None)
    if kind is None or not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        files = list(folder.glob("*.safetensors"))
        return Stored(sum(file.stat().st_size for file in files)) if files else None
    if QUANTIZED in described.configuration(folder, part):
        return Stored(sum(file.stat().st_size for file in folder.glob("*.safetensors")))
    try:
        with _without_data():
            if library == "diffusers":
                return kind.from_config(kind.load_config(folder))  # type: ignore[attr-defined]
            return kind(kind.config_class.from_pretrained(folder))  # type: ignore[attr-defined]
    except Exception as error:  # whatever a class makes of a configuration that is not its own
        reason = f"{part} cannot be built from its config.json ({first_line(error, 120)})"
        raise InputError(OPTION, name, reason, "check the folder, or update diffusers and transformers") from error


def _pipeline_class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name, diffusers.DiffusionPipeline)


def _offload_order(pipeline: Any) -> str | None:
    """In which order a pipeline or its class offloads its components; modular ones say none."""
    return getattr(pipeline, "model_cpu_offload_seq", None)


def _libraries(components: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        name: (type(part).__module__.split(".")[0], type(part).__name__)
        for name, part in components.items()
        if isinstance(part, nn.Module)
    }


@contextmanager
def _without_data() -> Iterator[None]:
    with torch.device("meta"), default_dtype(DTYPE):
        yield
