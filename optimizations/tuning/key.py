"""What a measurement holds for: this card, these versions, this model, about this size. Change one and it is void."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..settings import OptimizationSettings, Workload


@dataclass(frozen=True)
class TuningKey:
    """The key of a measurement. All fields are short readable text.

    Attributes:
        device: name and memory of the card ("NVIDIA H200, 140 GiB"), or of the processor with its thread count.
        software: versions of driver, torch, diffusers and whatever attention libraries are installed.
        model: name and fingerprint of the model, with the number of LoRAs on it.
        dtype: of the denoiser's computation.
        quantization: scheme of the weights, "none" without.
        memory_mode: where the weights live.
        shape: bucket of the work, see `shape_bucket`.
    """

    device: str
    software: str
    model: str
    dtype: str
    quantization: str
    memory_mode: str
    shape: str


def shape_bucket(workload: Workload) -> str:
    """The size of the work, so that close sizes share what was measured: "1.05 Mpx", "1.05 Mpx x 80 f, batch 2".

    The area is rounded to quarter octaves (within 9%), the frames likewise; below 1.5 frames it is a picture. Sizes
    that are not known give "any size".
    """
    if workload.width < 1 or workload.height < 1:
        return "any size"
    area = _quarter_octave(workload.width * workload.height) / 1e6
    text = f"{area:.3g} Mpx"
    if workload.frames > 1:
        text += f" x {_quarter_octave(workload.frames):.0f} f"
    return f"{text}, batch {workload.batch}" if workload.batch > 1 else text


def _quarter_octave(value: float) -> float:
    return 2 ** (round(4 * math.log2(value)) / 4)


def label(settings: OptimizationSettings) -> tuple[tuple[str, str], ...]:
    """What `settings` change against plain, as sorted (name, value) pairs; () is plain.

    "auto" is not plain: settings are labelled after it was decided. `memory_mode` is part of the key, not of
    the label.
    """
    plain = OptimizationSettings.plain()
    found: dict[str, str] = {}
    if settings.attention != plain.attention:
        found["attention"] = settings.attention
    if settings.torch_compile != "off":
        how = settings.compile
        vae = " with vae" if how.compile_vae else ""
        found["torch_compile"] = f"{how.scope} {how.backend} {how.mode}{vae}"
    if settings.vae_tiling.mode != "off":
        tiling = settings.vae_tiling
        found["vae_tiling"] = f"{tiling.tile_size}/{tiling.overlap}" if tiling.tile_size else tiling.mode
    if settings.step_cache != "off":
        found["step_cache"] = settings.step_cache
    if settings.quantized_matmul != "auto":
        found["quantized_matmul"] = settings.quantized_matmul
    if settings.fused_projections == "on":
        found["fused_projections"] = "on"
    for name in ("tf32", "cudnn_benchmark", "channels_last"):
        value = getattr(settings.precision, name)
        if value != "off":
            found[name] = value
    return tuple(sorted(found.items()))
