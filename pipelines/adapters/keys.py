"""The grammar of adapter files: a key is the name of a layer and the part of the adapter that the tensor is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Group = dict[str, "torch.Tensor"]
"""The parts of an adapter on one layer: part -> tensor."""

_ENDINGS = {
    "down": r"[._]lora(?:_linear_layer)?[._]down\.weight|\.lora_A(?:\.\w+)?\.weight",
    "up": r"[._]lora(?:_linear_layer)?[._]up\.weight|\.lora_B(?:\.\w+)?\.weight",
    "bias": r"\.lora_B(?:\.\w+)?\.bias",
    "mid": r"\.lora_mid\.weight",
    "magnitude": r"\.lora_magnitude_vector(?:\.\w+){0,2}",
    "alpha": r"\.alpha",
    "diff": r"\.diff",
    "diff_b": r"\.diff_b",
    "diff_m": r"\.diff_m",
    "dora_scale": r"\.dora_scale",
    **{f"hada_{part}": rf"\.hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{part}": rf"\.lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "oft": r"\.oft_\w+(?:\.weight)?",
    "embedding": r"\.lora_embedding_[AB](?:\.\w+)?",
    "ia3": r"\.ia3_l(?:\.\w+)?",
    "boft": r"\.boft_\w+",
}
_PROCESSOR = re.compile(r"(?P<layer>.*processor\..+_lora\d?)\.(?P<half>down|up)\.weight", re.DOTALL)
"""How attention processors were saved once: their own names, which diffusers' converters know."""
_ENDING = re.compile("(?:" + "|".join(f"(?P<{part}>{ending})" for part, ending in _ENDINGS.items()) + r")\Z")
_LONGEST_ENDING = 96
"""No more of a key is searched for its ending: an adapter's own name may be part of it."""
_LONGEST_KEY = 1000
_WORDS = ("lora", "alpha", "diff", "hada_", "lokr_", "oft_", "dora_scale", "ia3_l")
"""A key without any of these has none of the endings."""

PAIR = frozenset(("down", "up"))
LOHA = frozenset(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"))

_REFUSED = {
    "dora_scale": "DoRA in LyCORIS's form",
    "oft": "OFT",
    "boft": "BOFT",
    "ia3": "IA3",
    "hada_t1": "LoHa with Tucker kernels",
    "hada_t2": "LoHa with Tucker kernels",
    "lokr_t2": "LoKr with Tucker kernels",
    "embedding": "LoRA of an embedding table",
}
"""Part -> the kind of adapter that is not applied: without it the rest of the file would be a different adapter."""


def split(key: str) -> tuple[str, str] | None:
    """(layer, part) of a key; None when it is no part of an adapter."""
    if not any(word in key for word in _WORDS) or len(key) > _LONGEST_KEY:
        return None
    processor = _PROCESSOR.fullmatch(key) if "processor." in key else None
    if processor:
        return processor["layer"], processor["half"]
    found = _ENDING.search(key, max(1, len(key) - _LONGEST_ENDING))
    return (key[: found.start()], str(found.lastgroup)) if found else None


def is_processor(stem: str) -> bool:
    """Whether a name is that of a part of an attention processor."""
    return _PROCESSOR.fullmatch(f"{stem}.up.weight") is not None


def group(tensors: Mapping[str, torch.Tensor]) -> dict[str, Group]:
    """The parts of an adapter by layer; tensors that are no part of one are left out."""
    groups: dict[str, Group] = {}
    for key, tensor in tensors.items():
        parts = split(key)
        if parts is not None:
            groups.setdefault(parts[0], {})[parts[1]] = tensor
    return groups


def refused(groups: Mapping[str, Group]) -> tuple[str, str] | None:
    """(kind of adapter, layer) of the first part that makes a file unusable."""
    for layer, parts in groups.items():
        for part in parts:
            if part in _REFUSED:
                return _REFUSED[part], layer
    return None


def missing(group: Group) -> str:
    """What a layer's parts lack to be an adapter, "" when they are one."""
    if any(part.startswith("lokr_") for part in group):
        whole = all(f"lokr_{w}" in group or {f"lokr_{w}_a", f"lokr_{w}_b"} <= set(group) for w in ("w1", "w2"))
        return "" if whole else "a LoKr factor"
    if any(part.startswith("hada_") for part in group):
        return "" if set(group) >= LOHA else "a LoHa factor"
    if group.keys() & PAIR:
        half = "".join(PAIR - set(group))
        return f"the {half} matrix" if half else ""
    if group.keys() & {"magnitude", "mid"}:
        return "both matrices"
    return "" if group.keys() & {"diff", "diff_b", "diff_m", "bias"} else "both matrices"
