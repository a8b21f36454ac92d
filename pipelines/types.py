"""What goes into a load and into a run, and what comes out. Pure data: torch is imported for type checkers only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..report import OptimizationReport

if TYPE_CHECKING:
    import torch

    from ..optimizations.settings import OptimizationSettings
    from .conditions.kinds import Condition, ControlNetKey, ImagePromptKey
    from .embeddings.given import Embeddings
    from .families import Family


@dataclass(frozen=True)
class LoadKey:
    """Everything whose change needs a reload. Two equal keys share one pipeline; hot settings are not in here.

    Attributes:
        source: absolute path of a diffusers folder or .safetensors file, a Hub id ("owner/name"), or "tiny:<family>"
            for the embedded tiny pipelines.
        revision: Hub commit that was resolved, "" for local files.
        identity: fingerprint of the files (index, weight names, sizes and change times), so an edited model reloads.
        dtype: "auto", "bfloat16", "float16" or "float32".
        component_dtypes: exceptions to `dtype`, as sorted (component, dtype) pairs, e.g. (("vae", "float32"),).
        device: "auto", "cpu", "cuda", "cuda:1", "mps", "xpu".
        quantization: "none" (whatever the checkpoint holds) or a scheme to apply while loading.
        lora_rank: total rank that LoRAs are given room for with the first one, 0 for no more than that needs.
        parts: (component, absolute path) of a model whose components are files of their own; `source` is its
            diffusion model.
        comfyui: folder of the ComfyUI whose tokenizers such a model, or one in a single file, takes, "" for none.
    """

    source: str
    revision: str = ""
    identity: str = ""
    dtype: str = "auto"
    component_dtypes: tuple[tuple[str, str], ...] = ()
    device: str = "auto"
    quantization: str = "none"
    lora_rank: int = 0
    parts: tuple[tuple[str, str], ...] = ()
    comfyui: str = ""

    def holds(self, component: str) -> bool:
        """Whether it comes with a component: a model in parts may have been chosen without one."""
        return not self.parts or any(slot == component for slot, _ in self.parts)


@dataclass(frozen=True)
class LoraSpec:
    """One LoRA file. Attributes: path (absolute); strength; expert: "both", "high" or "low" (Wan's noise experts)."""

    path: str
    strength: float = 1.0
    expert: str = "both"


@dataclass(frozen=True)
class PipelineHandle:
    """What travels through a PIPELINE socket: a recipe, not the weights.

    The weights live in the process-wide cache only, so that a stale socket value can never keep an old model alive.
    """

    key: LoadKey
    memory_mode: str = "auto"
    loras: tuple[LoraSpec, ...] = ()
    vae: Any = field(default=None, compare=False)
    """The host's own VAE, which decodes instead of the pipeline's: an object of the host, and its weights its."""

    @property
    def decodes(self) -> bool:
        """Whether the pipeline's own VAE decodes."""
        return self.vae is None and self.key.holds("vae")

    def placing(self, settings: OptimizationSettings) -> OptimizationSettings:
        """The settings with the memory mode that was chosen where the pipeline was; "auto" leaves theirs."""
        return settings if self.memory_mode == "auto" else replace(settings, memory_mode=self.memory_mode)


@dataclass
class LoadedPipeline:
    """A pipeline as the cache holds it."""

    key: LoadKey
    pipeline: Any
    family: Family
    device: torch.device
    dtype: torch.dtype
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON-compatible: model class, parameters in bytes per component, load time in seconds, pinned revision."""
    stamp: str = ""
    """`sources.files_stamp` when the load began: what is not so any more is read again."""
    mapped: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    """`mapped_files.mapped_files` after the load: the files that weights are still read from."""
    absent_vae: Any = None
    """Of a model that was loaded without its VAE: one without content, for its configuration."""

    @property
    def vae(self) -> Any:
        """The VAE, or where it was left out one that says how latents are scaled, and can do nothing else."""
        return self.absent_vae if self.absent_vae is not None else self.pipeline.vae

    controlnets: dict[ControlNetKey, Any] = field(default_factory=dict)
    """The control models of the last run with it: they stay for the next, and go with the pipeline."""
    image_prompts: dict[ImagePromptKey, Any] = field(default_factory=dict)
    """What read the image prompts of the last run with it, likewise."""


@dataclass(frozen=True)
class SampleRequest:
    """One call of the sampler. None means "what the model's family recommends".

    Attributes:
        prompt, negative_prompt: text; the negative prompt is ignored, and that is reported, where a family has none.
        steps: denoising steps, 1..10000.
        guidance: the family's own guidance scale (embedded, true CFG or plain CFG; `families.py` says which argument).
        guidance_2: second guidance scale of two-expert pipelines (Wan 2.2), None = same as `guidance`.
        width, height: pixels of the result; multiples of the family's size multiple.
        num_frames: frames of the result, 1 for images; video families state their rule (Wan: 4n+1).
        frame_rate: frames per second of the result, None = family default.
        seed: 0..2**64-1; item i of a batch uses seed + i, on a CPU generator, so it is the same on every device.
        batch: images (or videos) to make, each with its own denoise run's worth of noise.
        scheduler: "model default" or the name of a diffusers scheduler class.
        flow_shift: how far a flow model's steps lean to the noisy end, None = the scheduler's own. With two experts it
            decides how many steps are whose; a LoRA for few steps wants the one that it was made with.
        images: reference images, each float [H, W, 3] in 0..1; [H, W, 4] with transparency, which few models read.
        last_image: last frame for first-and-last-frame video, likewise.
        latent: ComfyUI-convention latent to start from ([B, C, H, W] or [B, C, T, H, W]), with `strength` < 1.
        strength: 1.0 starts from noise; below 1, from `images[0]` or `latent`, where the pipeline has an
            image-to-image form.
        max_sequence_length: text tokens, None = pipeline default.
        decode: False leaves `SampleResult.frames` as None.
        positive, negative: the two prompts as text encoders outside of the pipeline encoded them, instead of text.
        conditions: what else the result is held to: a mask, say.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    guidance_2: float | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    frame_rate: float | None = None
    seed: int = 0
    batch: int = 1
    scheduler: str = "model default"
    flow_shift: float | None = None
    images: tuple[torch.Tensor, ...] = ()
    last_image: torch.Tensor | None = None
    latent: torch.Tensor | None = None
    strength: float = 1.0
    max_sequence_length: int | None = None
    decode: bool = True
    positive: Embeddings | None = None
    negative: Embeddings | None = None
    conditions: tuple[Condition, ...] = ()


@dataclass
class SampleResult:
    """What one run gives.

    Attributes:
        frames: float32 [B, T, H, W, C] in 0..1 on the CPU (T = 1 for images; C = 3, or 4 with alpha), or None when not
            decoded, or where the pipeline makes sound alone.
        latent: ComfyUI-convention latent on the CPU, [B, C, H, W] or [B, C, T, H, W]; None where the pipeline shows
            none, and the report says so.
        frame_rate: frames per second, None for images.
        audio: {"waveform": float [B, channels, samples], "sample_rate": int} where a pipeline gives sound, else None.
        seeds: the seed of each batch item.
        step_seconds: wall time of each denoising step.
        step_experts: which expert did each step, "high noise" or "low noise"; () for a model with one denoiser.
        stage_seconds: "text encode", "encode" (reference images), "denoise", "decode", ... in seconds.
        report: what was active.
        missing: what of a batch could not be made, and why, as a sentence without its end; "" where all was.
    """

    frames: torch.Tensor | None
    latent: torch.Tensor | None
    frame_rate: float | None
    seeds: tuple[int, ...]
    step_seconds: list[float]
    stage_seconds: dict[str, float]
    report: OptimizationReport
    audio: dict[str, Any] | None = None
    step_experts: tuple[str, ...] = ()
    missing: str = ""

    @property
    def outcome(self) -> torch.Tensor:
        """What the run was for: the frames, else the latent, else the sound's waveform."""
        found = self.frames if self.frames is not None else self.latent
        return found if found is not None else (self.audio or {})["waveform"]
