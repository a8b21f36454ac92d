"""Load LoRA and Quantize Model in a running ComfyUI."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from fastdiffusers.scripts.comfyui_server import ServerError

if TYPE_CHECKING:
    from comfy_client import Client

TINY = "embedded tiny: "
SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 5, "torch_compile": "off", "attention": "sdpa"}


@pytest.fixture(scope="module")
def loras(base: Path) -> Path:
    """ComfyUI's `loras` folder, with one file for Flux, one for SD3, and one that is no LoRA at all."""
    from diffusers import FluxPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    from fastdiffusers.pipelines import tiny

    folder = base / "models" / "loras"
    torch.manual_seed(0)
    for family in ("flux", "sd3"):
        pipeline: Any = tiny.build(family)
        pipeline.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"]), "made")
        state = get_peft_model_state_dict(pipeline.transformer, adapter_name="made")
        layers = {key: torch.randn_like(value) * 0.3 for key, value in state.items()}
        FluxPipeline.save_lora_weights(folder, layers, weight_name=f"{family}.safetensors")
    (folder / "broken.safetensors").write_bytes(b"no weights here")
    return folder


def with_loras(server: Client, *chain: dict[str, Any], family: str = "flux") -> dict[str, Any]:
    """The sampling graph with one LoRA node after the other between loader and sampler."""
    prompt = server.sampling(TINY + family, **SMALL)
    previous = "load"
    for number, widgets in enumerate(chain):
        name = f"lora{number}"
        inputs = {"pipeline": [previous, 0], "strength": 1.0, "expert": "both", **widgets}
        prompt[name] = {"class_type": "FastDiffusersLoadLora", "inputs": inputs}
        previous = name
    prompt["sample"]["inputs"]["pipeline"] = [previous, 0]
    return prompt


def test_a_lora_changes_the_picture_and_its_strength_is_hot(server: Client, loras: Path) -> None:
    plain = server.images(server.succeed(with_loras(server)))
    pictures = []
    for strength in (1.0, 0.4, 1.0):
        entry = server.succeed(with_loras(server, {"lora_name": "flux.safetensors", "strength": strength}))
        pictures.append(server.images(entry))
    assert not np.array_equal(pictures[0], plain)
    assert not np.array_equal(pictures[0], pictures[1])
    assert np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(server.images(server.succeed(with_loras(server))), plain)


def test_loras_chain(server: Client, loras: Path) -> None:
    half = {"lora_name": "flux.safetensors", "strength": 0.5}
    twice = server.succeed(with_loras(server, half, half))
    once = server.succeed(with_loras(server, {"lora_name": "flux.safetensors", "strength": 1.0}))
    assert np.abs(server.images(twice).astype(int) - server.images(once)).max() <= 1
    records = {record["name"]: record for record in server.report(twice)["optimizations"]}
    assert records["lora"]["requested"] == "flux 0.5, flux 0.5"
    assert "rank 8" in records["lora"]["applied"]


def test_a_lora_for_another_model_is_one_line_and_the_next_run_works(server: Client, loras: Path) -> None:
    entry = server.run(with_loras(server, {"lora_name": "sd3.safetensors"}))
    message = server.error(entry)
    assert message["exception_type"].endswith("InputError")
    assert "sd3.safetensors" in message["exception_message"]
    assert "FluxPipeline" in message["exception_message"]
    assert "\n" not in message["exception_message"].strip()
    server.succeed(with_loras(server, {"lora_name": "flux.safetensors", "strength": 0.3}))


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        ({"lora_name": "broken.safetensors"}, "safetensors"),
        ({"lora_name": "gone.safetensors"}, "no such file"),
        ({"lora_name": "../../escape.safetensors"}, "no such file"),
        ({"lora_name": "flux.safetensors", "strength": float("nan")}, "finite"),
        ({"lora_name": "flux.safetensors", "strength": 1e308}, "between -100 and 100"),
        ({"lora_name": "flux.safetensors", "strength": -100.5}, "between -100 and 100"),
    ],
)
def test_bad_widgets_are_refused_before_anything_runs(
    server: Client, loras: Path, widgets: dict[str, Any], words: str
) -> None:
    with pytest.raises(ServerError, match=words):
        server.run(with_loras(server, widgets))


def test_a_quantized_copy_can_be_loaded(server: Client, models: Path) -> None:
    pytest.importorskip("sdnq")
    prompt = {
        "quantize": server.node("FastDiffusersQuantize", model=TINY + "qwenimage", weights_dtype="uint4", name="small")
    }
    entry = server.succeed(prompt)
    shown = json.dumps(entry["outputs"]["quantize"])
    assert "uint4" in shown
    copy = models / "diffusers" / "small"
    assert (
        json.loads((copy / "transformer" / "config.json").read_text())["quantization_config"]["weights_dtype"]
        == "uint4"
    )
    sampled = server.succeed(server.sampling("small", **SMALL))
    assert server.images(sampled).std() > 1
    facts = server.report(sampled)["facts"]
    assert "uint4" in facts["quantization"]["text_encoder"]
    with pytest.raises(ServerError, match="name of one folder"):
        server.run({"quantize": server.node("FastDiffusersQuantize", model=TINY + "flux", name="../outside")})
    again = server.run({"quantize": server.node("FastDiffusersQuantize", model=TINY + "flux", name="small")})
    assert "exists already" in server.error(again)["exception_message"]
