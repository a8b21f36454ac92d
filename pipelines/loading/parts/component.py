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
MODEL_INPUT, ENCODER_INPUT, AUDIO_INPUT = "diffusion_model", "text_encoder", "audio_vae"
"""Inputs by which files are given."""
_OF_TEXTS = (ENCODER_INPUT, "image_encoder", "connectors", "text_projection")
_OF_SOUND = ("audio_vae", "vocoder")


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
        own: its tensors, of a file that holds other components too.
        fitted: its configuration, as one of the same sizes has it, for what a file holds of it.
    """

    library: str
    class_name: str
    usual: str
    told: Callable[[Shapes], bool]
    config: Callable[[Shapes], Config]
    rename: Callable[[Weights, Config], Weights]
    not_told: Callable[[Config], str] = lambda config: ""
    own: Callable[[Shapes], Shapes] = lambda shapes: shapes
    fitted: Callable[[Config, Shapes], Config] = lambda config, shapes: config

    def told_by(self, shapes: Shapes) -> bool:
        """Whether a file holds it, alone or beside others."""
        return self.told(self.own(shapes))

    @property
    def network(self) -> Any:
        """Its class, of diffusers, of transformers, or of the pipelines of diffusers in the folder `library`."""
        import diffusers
        import transformers

        home: Any = {"diffusers": diffusers, "transformers": transformers}.get(self.library)
        return getattr(home or getattr(diffusers.pipelines, self.library), self.class_name)

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
        held: makes it of that, where its class does not read it.
    """

    class_name: str
    folder: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    inside: str = ""
    held: Callable[[bytes], Any] | None = None


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
        inside: names of the components that the file of the diffusion model may hold too.
        joined: name of a component of which a file of its own may hold a part -> that of the whole.
        stand_ins: name of a component that may be left out -> what makes what stands in for it, as the pipeline asks it
            for numbers of its latents, from its configuration where the folder beside the diffusion model has one.
        elsewhere: name of a component of which no file is read -> what it is: ComfyUI's own does what it would do.
        agree: why these components, by their tensors, do not go together; "" where they do.
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
    inside: tuple[str, ...] = ()
    joined: Mapping[str, str] = field(default_factory=dict)
    stand_ins: Mapping[str, Callable[[Config], Any]] = field(default_factory=dict)
    elsewhere: Mapping[str, Component] = field(default_factory=dict)
    agree: Callable[[Mapping[str, Shapes]], str] = lambda shapes: ""

    def settings_with(self, components: Container[str]) -> Config:
        """The settings of the pipeline itself with these components."""
        return self.settings | (self.settings_of_two if self.second in components else {})

    @property
    def diffusion_model(self) -> str:
        """Name of the component that the diffusion model is."""
        return next(iter(self.components))

    @property
    def encoders(self) -> list[str]:
        """Names of the components that encode what is given: texts, and pictures where a model reads them so."""
        return [name for name in self.components if input_of(name) == ENCODER_INPUT]

    @property
    def text_encoders(self) -> list[str]:
        """Names of the components that encode texts."""
        return [name for name in self.components if name.startswith("text_encoder")]


def input_of(slot: str) -> str:
    """The input by which the file of a component is given: encoders of pictures go with those of texts."""
    if slot.startswith(_OF_TEXTS):
        return ENCODER_INPUT
    if slot in _OF_SOUND:
        return AUDIO_INPUT
    return slot if slot.startswith("vae") else MODEL_INPUT


def count_blocks(names: Shapes | Weights, beginning: str) -> int:
    """How many blocks there are whose names begin with `beginning` and a number."""
    return len({name[len(beginning) :].split(".")[0] for name in names if name.startswith(beginning)})
