"""LoRA files: read one, whatever trainer wrote it, and say which layers of a pipeline it changes and by what.

Only .safetensors files are read. diffusers' own converters, one for every family of pipelines, translate the names that
trainers give to layers; where they know a file's form in part or not at all, the layers themselves are asked for.
Whatever of a file is not applied is counted and named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import InputError, first_line
from ..optimizations.lora_factors import Factors, fit, is_norm, layer_shape
from ..optimizations.lora_layers import LoraBranches
from .adapters import architectures, converters, keys, parts, replaced_norms, scales
from .adapters.file import MAX_RANK, check, stamp
from .adapters.file import read as read_file
from .adapters.names import Names, Target
from .recognize import family_of

if TYPE_CHECKING:
    import torch

__all__ = ["Layers", "LoraFile", "check", "read", "stamp"]

_SHOWN_KEYS = 4
_CONTROL = "x_embedder ("
"""How the one layer that a FLUX.1 control LoRA widens is named among those that do not fit."""

Layers = dict[str, Factors]
"""Layer name -> what is added to it."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that was read and fitted to a pipeline.

    Attributes:
        parts: component ("transformer", "text_encoder", ...) -> its layers; the matrices are on the CPU.
        note: what of the file is not applied, in one sentence with counts; "" when all of it is.
    """

    parts: Mapping[str, Layers]
    note: str = ""


@dataclass
class _Findings:
    """What reading a file found out."""

    layers: dict[str, Layers] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    mismatch: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def matched(self) -> int:
        return sum(map(len, self.layers.values()))


def read(path: str, pipeline: Any, branches: Mapping[str, LoraBranches]) -> LoraFile:
    """Read a LoRA file and fit it to a pipeline, which is only looked at.

    Args:
        path: a .safetensors file.
        pipeline: the diffusers pipeline it is for.
        branches: component -> its branches, for every component that can take a LoRA.

    Raises:
        ModelFileError: the file is missing or damaged.
        InputError: it is for another architecture, or no LoRA, or of a kind that is not applied.
    """
    shapes = check(path)
    parts_of = [key for key in shapes if keys.split(key) is not None]
    norms = [key for key in shapes if replaced_norms.is_one(key, pipeline)]
    tensors, metadata = read_file(path, [*parts_of, *norms])
    others = {key: shape for key, shape in shapes.items() if key not in tensors}
    try:
        groups = keys.group(tensors)
        _refuse_kinds(path, groups, metadata)
        remarks, groups = _without_the_unusable(path, groups, others, norms)
        settings = {component: scales.settings_of(component, metadata) for component in branches}
        groups = {stem: _as_pair(group, settings) for stem, group in groups.items()}
        found = _assign(groups, pipeline, branches, settings)
        _add_norms(found, {key: tensors[key] for key in norms}, branches)
    except InputError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, re.error) as error:
        converters.reraise_out_of_memory(error)
        raise InputError(
            "lora", Path(path).name, f"it is malformed ({first_line(error)})", "use another file"
        ) from error
    inner = {stem: tuple(group["down"].shape) if "down" in group else () for stem, group in groups.items()}
    architecture = architectures.architecture_of(inner)
    if found.mismatch or len(found.unmatched) >= max(found.matched, 1) or _is_foreign(architecture, found, pipeline):
        _refuse_architecture(path, pipeline, found, list(inner), architecture)
    remarks += found.remarks
    if found.unmatched:
        remarks.append(f"{_count(len(found.unmatched), 'layer')} not in this model: {_some(found.unmatched)}")
    return LoraFile(found.layers, "; ".join(remarks))


def _refuse_kinds(path: str, groups: Mapping[str, keys.Group], metadata: Mapping[str, Any]) -> None:
    name = Path(path).name
    kind = keys.refused(groups)
    if kind is not None:
        reason = f"it holds a kind of adapter that is not applied, {kind[0]} ({kind[1]})"
        raise InputError("lora", name, reason, "choose another file")
    dora = {stem.partition(".")[0] for stem, group in groups.items() if "magnitude" in group}
    pairs = [stem for stem, group in groups.items() if group.keys() >= keys.PAIR and "magnitude" not in group]
    pairs = [stem for stem in pairs if stem.partition(".")[0] in dora]
    if pairs:
        reason = f"it is a DoRA adapter, but {len(pairs)} of its layers have no magnitude: {_some(pairs)}"
        raise InputError("lora", name, reason, "choose another file")
    for component in dict.fromkeys(key.partition(".")[0] for key in metadata):
        reason = scales.refused_settings(scales.settings_of(component, metadata))
        if reason:
            raise InputError("lora", name, reason, "choose another file")


def _without_the_unusable(
    path: str, groups: dict[str, keys.Group], others: Mapping[str, Sequence[int]], norms: Sequence[str]
) -> tuple[list[str], dict[str, keys.Group]]:
    """What is left out, in words, and the rest. A file of which nothing is left is refused."""
    remarks = []
    if others:
        remarks.append(f"{_count(len(others), 'key')} no part of a LoRA: {_some(list(others))}")
    lacking = {stem: keys.missing(group) for stem, group in groups.items()}
    lone = [f"{stem} (lacks {lack})" for stem, lack in lacking.items() if lack]
    if lone:
        remarks.append(f"{_count(len(lone), 'layer')} incomplete and left out: {_some(lone)}")
    modulations = [stem for stem, group in groups.items() if "diff_m" in group and bool(group["diff_m"].any())]
    if modulations:
        text = f"{_count(len(modulations), 'difference')} of modulation tables (diff_m) not applied"
        remarks.append(f"{text}: {_some(modulations)}")
    kept = {stem: _meaningful(group) for stem, group in groups.items() if not lacking[stem]}
    kept = {stem: group for stem, group in kept.items() if group}
    if norms:
        remarks.append(f"{_count(len(norms), 'norm')} taken whole from the file, by the strength as all of it")
    if not kept and (others or not norms):
        kind = architectures.kind_of(list(others), others) if not groups else ""
        reason = f"it is no LoRA but {kind}" if kind else "there is no LoRA in it"
        of = "; ".join(remarks) or "all of it is zero"
        raise InputError("lora", Path(path).name, f"{reason}: {of}", "choose a LoRA file")
    return remarks, kept


def _meaningful(group: keys.Group) -> keys.Group:
    """A layer's parts without differences that change nothing; an alpha alone is nothing either."""
    kept = {
        part: tensor
        for part, tensor in group.items()
        if part != "diff_m" and (part not in ("diff", "diff_b") or bool(tensor.any()))
    }
    return {} if set(kept) <= {"alpha"} else kept


def _as_pair(group: keys.Group, settings: Mapping[str, Mapping[str, Any]]) -> keys.Group:
    if group.keys() >= keys.LOHA:
        group = parts.loha_as_pair(group, next(iter(settings.values()), {}))
        if group["down"].shape[0] > MAX_RANK:
            raise ValueError(f"as a LoRA, its LoHa has rank {group['down'].shape[0]}, more than {MAX_RANK}")
    return parts.with_mid(group) if "mid" in group else group


def _assign(
    groups: Mapping[str, keys.Group],
    pipeline: Any,
    branches: Mapping[str, LoraBranches],
    settings: Mapping[str, Mapping[str, Any]],
) -> _Findings:
    """The layers that a file's names mean, as diffusers has it where it can translate all that the layers know."""
    names = Names(branches, groups)
    own = {stem: names.find(stem) for stem in groups}
    translated = converters.translate(groups, pipeline)
    # diffusers lets FLUX.1's variants with more channels take the LoRAs of those with fewer.
    expands = hasattr(pipeline, "_maybe_expand_lora_state_dict")
    if translated is not None:
        targets = {stem: names.find(stem) for stem in translated}
        reached = {target for several in targets.values() for target in several}
        wanted = {Target(t.component, t.layer) for several in own.values() for t in several}
        if reached and wanted <= reached and sum(map(bool, targets.values())) >= sum(map(bool, own.values())):
            found = _fitted(translated, targets, branches, settings, expands)
            if wanted == reached:  # so what the layers do not know was dropped on the way
                known = {*found.unmatched, *found.mismatch}
                found.unmatched += [stem for stem, several in own.items() if not several and stem not in known]
            return found
    return _fitted(groups, own, branches, settings, expands)


def _fitted(
    groups: Mapping[str, keys.Group],
    targets: Mapping[str, Sequence[Target]],
    branches: Mapping[str, LoraBranches],
    settings: Mapping[str, Mapping[str, Any]],
    expands: bool,
) -> _Findings:
    found = _Findings()
    for stem, group in groups.items():
        several = targets[stem]
        if not several:
            found.unmatched.append(stem)
            continue
        try:
            layers = [branches[target.component].original(target.layer) for target in several]
            factors = _factors(group, several[0], settings[several[0].component])
            rows = [0 if is_norm(layer) else layer_shape(layer)[1] for layer in layers]
            if expands and len(layers) == 1 and rows[0]:
                factors = parts.widened(factors, layer_shape(layers[0])[0])
            cut = parts.split_rows(factors, rows)
            fitted = [
                fit(parts.swap_halves(own) if target.swapped else own, layer)
                for target, own, layer in zip(several, cut, layers, strict=True)
            ]
        except parts.MalformedError as error:
            raise parts.MalformedError(f"{stem}: {error}") from error
        except (TypeError, ValueError) as error:
            found.mismatch.append(f"{stem} ({first_line(error)})")
            continue
        for target, one in zip(several, fitted, strict=True):
            found.layers.setdefault(target.component, {})[target.layer] = one
    return found


def _add_norms(found: _Findings, norms: Mapping[str, torch.Tensor], branches: Mapping[str, LoraBranches]) -> None:
    for key, weight in norms.items():
        component, layer = replaced_norms.layer_of(key)
        try:
            factors = replaced_norms.factors(weight, branches[component].original(layer))
        except (AttributeError, KeyError):
            found.unmatched.append(key)
        except (TypeError, ValueError) as error:
            found.mismatch.append(f"{key} ({first_line(error)})")
        else:
            found.layers.setdefault(component, {})[layer] = factors


def _factors(group: keys.Group, target: Target, settings: Mapping[str, Any]) -> Factors:
    alpha = None
    if "alpha" in group:
        if group["alpha"].numel() != 1 or not bool(group["alpha"].float().isfinite()):
            raise parts.MalformedError(f"its alpha is {group['alpha'].flatten().tolist()[:_SHOWN_KEYS]}")
        alpha = float(group["alpha"])
    scale = lokr = 1.0
    if group.keys() >= keys.PAIR and group["down"].ndim:
        scale = scales.pair_scale(alpha, int(group["down"].shape[0]), target.layer, settings)
    if any(part.startswith("lokr_") for part in group):
        lokr = scales.lokr_scale(alpha, parts.lokr_rank(group), target.layer, settings)
    return parts.factors_of(group, scale, lokr)


def _is_foreign(architecture: str, found: _Findings, pipeline: Any) -> bool:
    """Whether a file that fits in part is for another architecture: some have layers of the same names and sizes."""
    family, kind = family_of(pipeline).name, type(pipeline).__name__
    known = bool(architecture) and architectures.is_known(family, kind)
    return known and bool(found.unmatched) and not architectures.is_for(architecture, family, kind)


def _refuse_architecture(path: str, pipeline: Any, found: _Findings, stems: list[str], architecture: str) -> NoReturn:
    kind = type(pipeline).__name__
    own = architectures.is_for(architecture, family_of(pipeline).name, kind)
    total = len(found.unmatched) + len(found.mismatch) + found.matched
    cure = "choose a LoRA that was trained for this model"
    if found.mismatch:
        reason = f"{len(found.mismatch)} of its {total} layers do not fit those of {kind}: {_some(found.mismatch)}"
        if own:
            cure = f"it is for {architecture}, but one of another size: choose one for the size of this model"
        if replaced_norms.are_taken(pipeline) and all(_CONTROL in text for text in found.mismatch):
            reason = f"it is a control LoRA, which widens the input for a control picture: {_some(found.mismatch)}"
            cure = f"{kind} takes no control picture; choose a LoRA that changes other layers only"
    else:
        of = f"{len(found.unmatched)} of its {total} layers" if found.matched else "its keys"
        reason = f"{of} belong to no layer of {kind}: {_some(found.unmatched or stems)}"
        if own:
            cure = f"it is for {architecture}, but for one with other layers: choose one for the size of this model"
    if architecture and not own:
        reason = f"it is for {architecture}; {reason}"
        if " or " not in architecture:
            cure += f", or load {architecture}"
    raise InputError("lora", Path(path).name, reason, cure)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return ", ".join(names[:_SHOWN_KEYS]) + more
