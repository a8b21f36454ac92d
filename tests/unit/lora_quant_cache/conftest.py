"""Real pipelines in small, LoRA files that peft and diffusers wrote for them, and one way to run each family."""

from __future__ import annotations

import os

os.environ["SDNQ_USE_TORCH_COMPILE"] = "0"  # before sdnq is imported: its CPU kernels take minutes to compile

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for lora_kit

Run = Callable[..., torch.Tensor]
MakeLora = Callable[..., Path]

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture
def run(small_edit_pictures: None) -> Run:
    """Runs a tiny pipeline and returns its latents [...], the same for the same seed."""
    from PIL import Image

    def run_pipeline(pipeline: Any, steps: int = 3, seed: int = 0, **options: Any) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        wanted: dict[str, Any] = {
            "prompt": "a small red house",
            "negative_prompt": "blue",
            "num_inference_steps": steps,
            "height": 64,
            "width": 64,
            "num_frames": 5,
            "max_sequence_length": 64,  # instead of padding to 512, where most of the time would go
            "true_cfg_scale": 3.0,
            "max_area": 64 * 64,
            "_auto_resize": False,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(seed),
            **options,
        }
        takes = inspect.signature(pipeline.__call__).parameters
        if any(kind in type(pipeline).__name__ for kind in ("Edit", "Kontext", "ImageToVideo")):
            wanted["image"] = Image.new("RGB", (64, 64), (200, 40, 10))
        output = pipeline(**{name: value for name, value in wanted.items() if name in takes})
        return output.frames if hasattr(output, "frames") else output.images

    return run_pipeline


@pytest.fixture
def make_lora(tmp_path: Path, tiny_pipeline: Callable[..., Any]) -> MakeLora:
    """Writes a LoRA file for a family with peft and diffusers, as a trainer would.

    The factors are random and large enough to be seen.
    """

    def make(
        family: str,
        rank: int = 4,
        seed: int = 0,
        alpha: float | None = None,
        targets: Any = None,
        name: str = "",
        parts: tuple[str, ...] = ("",),
    ) -> Path:
        from peft import LoraConfig, get_peft_model_state_dict

        pipeline = tiny_pipeline(family)
        denoiser = "unet" if hasattr(pipeline, "unet") else "transformer"
        layers = {}
        for part in (part or denoiser for part in parts):
            model = getattr(pipeline, part)
            on = targets or (["q_proj", "v_proj"] if "encoder" in part else ATTENTION)
            model.add_adapter(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=on), "made")
            state = get_peft_model_state_dict(model, adapter_name="made")
            generator = torch.Generator().manual_seed(seed)
            layers[f"{part}_lora_layers"] = {
                key: torch.randn(value.shape, generator=generator) * 0.3 for key, value in state.items()
            }
            metadata = {f"{part}_lora_adapter_metadata": model.peft_config["made"].to_dict()} if alpha else {}
            layers |= {key: _plain(value) for key, value in metadata.items()}
        folder = tmp_path / "loras"
        name = name or f"{family}-r{rank}-s{seed}.safetensors"
        type(pipeline).save_lora_weights(folder, weight_name=name, **layers)
        return folder / name

    return make


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """peft's configuration as JSON can hold it."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
