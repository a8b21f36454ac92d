"""The golden cases' models: weights by formula, built once per process."""

from __future__ import annotations

import json
import zlib
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdiffusers.vae import VaeConfig, VideoVAE, from_state_dict

DATA = Path(__file__).resolve().parents[2] / "data" / "video_vae"
MANIFEST = json.loads((DATA / "manifest.json").read_text())


@cache
def golden_weights(config: str) -> dict[str, torch.Tensor]:
    """The weights the goldens were made with: a function of key and shape."""
    weights = {}
    for key, shape in json.loads((DATA / f"keys_{config}.json").read_text()).items():
        generator = np.random.default_rng([MANIFEST["seed"], zlib.crc32(key.encode())])
        values = generator.standard_normal(size=shape, dtype=np.float32)
        if key.split(".")[-1] == "bias":
            values *= 0.05
        elif "norm" in key:
            values = 1 + 0.1 * values
        else:
            values *= 1 / np.sqrt(np.prod(shape[1:]))
        weights[key] = torch.from_numpy(values.astype(np.float32))
    return weights


def golden_config(config: str) -> VaeConfig:
    known = {item.name for item in fields(VaeConfig)}
    values: dict[str, Any] = MANIFEST["configs"][config]
    return VaeConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known})


@cache
def golden_vae(config: str) -> VideoVAE:
    return from_state_dict(golden_weights(config), config=golden_config(config))
