"""The sound of a result: from what a pipeline returns beside the frames to a waveform in ComfyUI's AUDIO form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..callbacks import Callbacks
from ..optimizations.components import execution_device, is_modular_class, weights_dtype
from .classes.outputs import SOUNDS

if TYPE_CHECKING:
    import torch

    from ..report import OptimizationReport
    from .types import LoadedPipeline

STAGE = "decode sound"


def sound_of(
    loaded: LoadedPipeline, outputs: Sequence[Any], callbacks: Callbacks, report: OptimizationReport, batch: int = 1
) -> dict[str, Any] | None:
    """The sound of one run.

    Args:
        loaded: the pipeline that was called.
        outputs: what each call returned; of a known family its `audio` is latents, of another the finished
            waveform, under whatever name.
        callbacks: ticked as stage "decode sound".
        report: told where there is sound that cannot be given.
        batch: items of the run: a waveform without an axis for them has one for channels.

    Returns:
        {"waveform": float32 [B, channels, samples] in -1..1 on the CPU, "sample_rate": int in Hz}, or None where the
        pipeline gives no sound.
    """
    if loaded.family.known and loaded.family.sound and not loaded.key.holds("audio_vae"):
        report.note("no sound: the model was loaded without its VAE for sound (audio_vae).")
        return None
    found = [getattr(output, name, None) for output in outputs for name in SOUNDS]
    sounds = [audio for audio in found if audio is not None]
    if not sounds:
        return None
    rate = sample_rate(loaded.pipeline)
    if rate is None:
        report.note("the pipeline gave sound, but nothing in it says at how many samples a second: it is left out.")
        return None
    if loaded.family.known and not is_modular_class(type(loaded.pipeline)):
        callbacks.tick(STAGE, 0, 1)
        sounds = [_decode(loaded, latents) for latents in sounds]
        callbacks.tick(STAGE, 1, 1)
    waveforms = [_waveform(sound, batch // len(outputs)) for sound in sounds]
    return {"waveform": _joined(waveforms), "sample_rate": rate}


def sample_rate(pipeline: Any) -> int | None:
    """Samples per second of a pipeline's sound, in Hz, from what makes the waveform; None where nothing says it."""
    for part in ("vocoder", "sound_tokenizer", "audio_vae", "vae", "unet"):
        config = getattr(getattr(pipeline, part, None), "config", None)
        for name in ("output_sampling_rate", "sampling_rate", "sample_rate"):
            if rate := getattr(config, name, None):
                return int(rate)
    for name in ("audio_sample_rate", "sample_rate"):
        if rate := getattr(pipeline, name, None):
            return int(rate)
    mel = getattr(pipeline, "mel", None)
    return None if mel is None else int(mel.get_sample_rate())


def _waveform(audio: Any, batch: int) -> torch.Tensor:
    """A waveform as pipelines give it, [samples], [B or channels, samples] or with all three axes, as all three."""
    import numpy
    import torch

    if isinstance(audio, list | tuple):
        audio = numpy.stack([numpy.asarray(each) for each in audio])
    waveform = torch.as_tensor(audio).float().cpu()
    if waveform.ndim == 1:
        waveform = waveform[None]
    if waveform.ndim == 2:
        # One sound with its channels, or one for each item of the batch.
        waveform = waveform[:, None] if waveform.shape[0] == batch else waveform[None]
    return waveform


def _joined(waveforms: list[torch.Tensor]) -> torch.Tensor:
    """One batch of them, the shorter ones ending in silence."""
    import torch

    longest = max(waveform.shape[-1] for waveform in waveforms)
    return torch.cat([torch.nn.functional.pad(each, (0, longest - each.shape[-1])) for each in waveforms])


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
    return f"{samples / rate:.2f} s in {channels} channel(s) at {rate} Hz; ComfyUI's LATENT holds the picture alone"
