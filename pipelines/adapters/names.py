"""Which layers of a pipeline an adapter's names mean, whichever trainer wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ...optimizations.lora_layers import LoraBranches
from .original_names import ORIGINAL_NAMES, SWAPPED_NORMS

_WRAPPERS = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "pipe.dit.",
    "dit.",
    "model.",
    "_orig_mod.",
)
"""What stands before a layer's name where a program saved the model inside something."""
_FLAT = {
    "lora_unet_": "",
    "lora_transformer_": "",
    "lycoris_": "",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
}
"""Beginnings of kohya's names, in which every dot is "_" -> the component; "" is the denoiser."""
_DENOISERS = ("transformer", "unet")
_WAN_NORM = re.compile(r"(blocks[._]\d+[._])(norm[23])")


@dataclass(frozen=True)
class Target:
    """A layer that a name means, or one of several that share its rows.

    Attributes:
        component: "transformer", "text_encoder", ...
        layer: the layer's name in that component.
        swapped: the two halves of its rows are exchanged.
    """

    component: str
    layer: str
    swapped: bool = False


class Names:
    """The layers of a pipeline, found by any of the names that files give them.

    Args:
        branches: component -> its branches.
        stems: all names of the file: some spellings are known by the company they keep.
    """

    def __init__(self, branches: Mapping[str, LoraBranches], stems: Iterable[str] = ()) -> None:
        self._layers = {component: frozenset(those.names()) for component, those in branches.items()}
        self._flat = {
            component: {name.replace(".", "_"): name for name in names} for component, names in self._layers.items()
        }
        self._denoiser = next((name for name in _DENOISERS if name in branches), "")
        self._original_wan = any("self_attn" in stem or "cross_attn" in stem for stem in stems)

    def find(self, stem: str) -> list[Target]:
        """The layers that a name means, [] when there is none; several share its rows in this order."""
        for component, name in self._readings(stem):
            targets = self._in_component(component, name)
            if targets:
                return targets
        return []

    def _readings(self, stem: str) -> Iterator[tuple[str, str]]:
        """(component, rest) for every way of taking the beginning of a name away."""
        for beginning, component in _FLAT.items():
            if stem.startswith(beginning):
                yield component or self._denoiser, stem.removeprefix(beginning)
        yield self._denoiser, stem
        component, _, rest = stem.partition(".")
        if component in self._layers:
            yield component, rest
        for wrapper in _WRAPPERS:
            if stem.startswith(wrapper):
                yield from self._readings(stem.removeprefix(wrapper))

    def _in_component(self, component: str, name: str) -> list[Target]:
        layers = self._layers.get(component, frozenset())
        norm = _WAN_NORM.fullmatch(name) if self._original_wan else None
        if norm:
            name = norm[1] + SWAPPED_NORMS[norm[2]]
        # CLIP has lost a level over the versions.
        bare = name.removeprefix("text_model.").removeprefix("text_model_")
        for candidate in (name, bare, f"text_model.{bare}", f"text_model_{bare}"):
            found = candidate if candidate in layers else self._flat.get(component, {}).get(candidate)
            if found:
                return [Target(component, found)]
        return self._original(component, name, layers)

    def _original(self, component: str, name: str, layers: frozenset[str]) -> list[Target]:
        for pattern, alternatives in _ORIGINAL:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            known = match.groupdict()
            at = self._flat.get(component, {}).get(known.get("at") or "", known.get("at") or "")
            for alternative in alternatives:
                names = [target.replace("#", known.get("number") or "").replace("@", at) for target in alternative]
                if all(target.removeprefix("~") in layers for target in names):
                    return [Target(component, target.removeprefix("~"), target.startswith("~")) for target in names]
        return []


def _compiled(pattern: str) -> re.Pattern[str]:
    pattern = pattern.replace("/", "[._]").replace("#", r"(?P<number>\d+)")
    return re.compile(pattern.replace("@", "(?P<at>.+)"))


_ORIGINAL = [(_compiled(pattern), alternatives) for pattern, alternatives in ORIGINAL_NAMES.items()]
