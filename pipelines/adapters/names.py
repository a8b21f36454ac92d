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
        self._layers = {component: {name: name for name in those.names()} for component, those in branches.items()}
        self._flat = {
            component: {name.replace(".", "_"): name for name in names} for component, names in self._layers.items()
        }
        self._denoiser = next((name for name in _DENOISERS if name in branches), "")
        self._original_wan = any("self_attn" in stem or "cross_attn" in stem for stem in stems)

    def find(self, stem: str) -> list[Target]:
        """The layers that a name means, [] when there is none; several share its rows in this order."""
        for component, name, flat in self._readings(stem):
            targets = self._in_component(component, name, flat)
            if targets:
                return targets
        return []

    def _readings(self, stem: str) -> Iterator[tuple[str, str, bool]]:
        """(component, rest, whether "_" stands for every dot) for every way of taking a name's beginning away."""
        for beginning, component in _FLAT.items():
            if stem.startswith(beginning):
                yield component or self._denoiser, stem.removeprefix(beginning), True
        yield self._denoiser, stem, False
        component, _, rest = stem.partition(".")
        if component in self._layers:
            yield component, rest, False
        for wrapper in _WRAPPERS:
            if stem.startswith(wrapper):
                yield from self._readings(stem.removeprefix(wrapper))

    def _in_component(self, component: str, name: str, flat: bool) -> list[Target]:
        names = self._flat.get(component, {}) if flat else self._layers.get(component, {})
        norm = _WAN_NORM.fullmatch(name) if self._original_wan else None
        if norm:
            name = norm[1] + SWAPPED_NORMS[norm[2]]
        # CLIP has lost a level over the versions.
        level = "text_model_" if flat else "text_model."
        for candidate in (name, name.removeprefix(level), level + name):
            if candidate in names:
                return [Target(component, names[candidate])]
        return self._original(component, name, names, flat)

    def _original(self, component: str, name: str, names: Mapping[str, str], flat: bool) -> list[Target]:
        layers = self._layers.get(component, {})
        for pattern, alternatives in _FLAT_ORIGINAL if flat else _ORIGINAL:
            match = pattern.fullmatch(name)
            if match is None:
                continue
            known = match.groupdict()
            at = known.get("at") or ""
            for alternative in alternatives:
                number, place = known.get("number") or "", names.get(at, at)
                found = [target.replace("#", number).replace("@", place) for target in alternative]
                if all(target.removeprefix("~") in layers for target in found):
                    return [Target(component, target.removeprefix("~"), target.startswith("~")) for target in found]
        return []


def _compiled(dot: str) -> list[tuple[re.Pattern[str], list[list[str]]]]:
    """The table with the patterns for names in which `dot` stands between the levels."""
    compiled = []
    for pattern, alternatives in ORIGINAL_NAMES.items():
        levels = pattern.replace("/", re.escape(dot)).replace("#", r"(?P<number>\d+)").replace("@", "(?P<at>.+)")
        compiled.append((re.compile(levels), alternatives))
    return compiled


_ORIGINAL, _FLAT_ORIGINAL = _compiled("."), _compiled("_")
