"""What a family in parts is made of: its components, how their files are told, and its tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
"""Tensor name -> shape."""
Weights = dict[str, Any]
"""Tensor name -> tensor."""
Config = dict[str, Any]

DIFFUSION_MODEL, TEXT_ENCODER, VAE, UNREADABLE = "diffusion model", "text encoder", "VAE", "unreadable"


@dataclass(frozen=True)
class Component:
    """One network of a pipeline that has a file of its own.

    Attributes:
        library, class_name: the class that it becomes.
        usual: what it is, and what its file is usually called.
        told: whether a file's tensors have its names. Sizes are compared with the network later.
        config: its configuration, from the shapes.
        rename: its weights under the names of its class. Any error means that they are another model's.
        not_told: what it was taken for that its tensors do not tell, for the report.
    """

    library: str
    class_name: str
    usual: str
    told: Callable[[Shapes], bool]
    config: Callable[[Shapes], Config]
    rename: Callable[[Weights, Config], Weights]
    not_told: Callable[[Config], str] = lambda config: ""

    @property
    def title(self) -> str:
        """What it is, without the name of a file."""
        return self.usual.split(", usually")[0]


@dataclass(frozen=True)
class Tokenizer:
    """How a tokenizer is made without a network.

    Attributes:
        class_name: in transformers.
        folder: in ComfyUI, which ships it; "" for none.
        options: what its configuration there leaves out.
        inside: component whose file holds it, as the tensor "spiece_model".
    """

    class_name: str
    folder: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    inside: str = ""


@dataclass(frozen=True)
class PartsFamily:
    """One published model, or several of the same tensors, that is read in parts.

    Attributes:
        title: what people call it.
        told: whether a diffusion model's tensors and the name of its file are this one's.
        pipeline: class in diffusers.
        components: name in the pipeline -> component, the diffusion model first.
        tokenizers: name in the pipeline -> tokenizer.
        scheduler: class in diffusers and its configuration.
        note: what the tensors do not tell, for the report.
        more: further components without weights, from those that there are and the folder beside the diffusion model.
        second: the component that a second diffusion model is, "" where there is one only.
        needs_second: whether a diffusion model in a file of that name needs the second one.
        expert: which of the two the name of a file says that it is: "high", "low", or "" where it does not say.
        settings: of the pipeline itself.
        settings_of_two: likewise, where there are both diffusion models.
    """

    title: str
    told: Callable[[Shapes, str], bool]
    pipeline: str
    components: Mapping[str, Component]
    tokenizers: Mapping[str, Tokenizer]
    scheduler: tuple[str, Config]
    note: str = ""
    more: Callable[[dict[str, Any], Path], dict[str, Any]] | None = None
    second: str = ""
    needs_second: Callable[[str], bool] = lambda name: False
    expert: Callable[[str], str] = lambda name: ""
    settings: Config = field(default_factory=dict)
    settings_of_two: Config = field(default_factory=dict)

    def settings_with(self, components: Container[str]) -> Config:
        """The settings of the pipeline itself with these components."""
        return self.settings | (self.settings_of_two if self.second in components else {})

    @property
    def diffusion_model(self) -> str:
        """Name of the component that the diffusion model is."""
        return next(iter(self.components))

    @property
    def encoders(self) -> list[str]:
        """Names of the components that text encoders are."""
        return [name for name in self.components if name.startswith("text_encoder")]


def count_blocks(names: Shapes | Weights, beginning: str) -> int:
    """How many blocks there are whose names begin with `beginning` and a number."""
    return len({name[len(beginning) :].split(".")[0] for name in names if name.startswith(beginning)})
