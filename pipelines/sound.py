"""The sound of a result: from what a pipeline returns beside the frames to a waveform in ComfyUI's AUDIO form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..callbacks import Callbacks
from ..optimizations.components import execution_device, weights_dtype

if TYPE_CHECKING:
    import torch

    from .types import LoadedPipeline

STAGE = "decode sound"


def sound_of(loaded: LoadedPipeline, output: Any, callbacks: Callbacks) -> dict[str, Any] | None:
    """The sound that belongs to one call's output.

    Args:
        loaded: the pipeline that was called.
        output: what it returned; of a known family its `audio` is latents, of another the finished waveform.
        callbacks: ticked as stage "decode sound".

    Returns:
        {"waveform": float32 [B, channels, samples] in -1..1 on the CPU, "sample_rate": int in Hz}, or None where the
        pipeline gives no sound.
    """
    audio = getattr(output, "audio", None)
    vocoder = getattr(loaded.pipeline, "vocoder", None)
    if audio is None or vocoder is None:
        return None
    if loaded.family.known:
        callbacks.tick(STAGE, 0, 1)
        audio = _decode(loaded, audio)
        callbacks.tick(STAGE, 1, 1)
    return {"waveform": audio.float().cpu(), "sample_rate": int(vocoder.config.output_sampling_rate)}


def _decode(loaded: LoadedPipeline, latents: torch.Tensor) -> torch.Tensor:
    """Audio latents [B, C, columns, mel bins] to a waveform, as the pipeline does after its last step."""
    import torch

    audio_vae = loaded.pipeline.audio_vae
    with torch.no_grad():
        latents = latents.to(execution_device(audio_vae, loaded.device), weights_dtype(audio_vae))
        waveform: torch.Tensor = loaded.pipeline.vocoder(audio_vae.decode(latents, return_dict=False)[0])
        return waveform


def summary(sound: dict[str, Any]) -> str:
    """The sound in words, for the report."""
    _, channels, samples = sound["waveform"].shape
    rate = sound["sample_rate"]
    return f"{samples / rate:.2f} s in {channels} channel(s) at {rate} Hz; the latent holds the picture alone"
