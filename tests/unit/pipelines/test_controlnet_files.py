"""ControlNets as single files: the same as their folders, their configuration from what their tensors show."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from original_sd import original_unet
from other_pipelines import stable_diffusion
from safetensors.torch import load_file, save_file
from test_controlnets import EDGES, control, request
from test_masks import held

from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.control import control_form
from fastdiffusers.pipelines.conditions.controlnets import resolve_controlnet
from fastdiffusers.pipelines.conditions.controls.files import check_tensors, configuration
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.types import PipelineHandle

PLAIN = OptimizationSettings.plain()


def write(model: Any, folder: Path, name: str = "net") -> Path:
    """The weights of a control model alone, as one file."""
    model.save_pretrained(folder / "saved")
    (folder / "models").mkdir(parents=True)
    shutil.move(folder / "saved" / "diffusion_pytorch_model.safetensors", folder / "models" / f"{name}.safetensors")
    return folder / "models" / f"{name}.safetensors"


def original(model: Any) -> dict[str, torch.Tensor]:
    """A `ControlNetModel` of one layer a level under the names of ControlNet's own code."""
    hint, out = "controlnet_cond_embedding.", {}
    unet = {}
    for name, value in model.state_dict().items():
        if name.startswith(f"{hint}conv_"):
            out[
                name.replace(f"{hint}conv_in", "input_hint_block.0").replace(f"{hint}conv_out", "input_hint_block.14")
            ] = value
        elif name.startswith(hint):
            number, rest = name.removeprefix(f"{hint}blocks.").split(".")
            out[f"input_hint_block.{2 * int(number) + 2}.{rest}"] = value
        elif name.startswith("controlnet_down_blocks."):
            number, rest = name.removeprefix("controlnet_down_blocks.").split(".")
            out[f"zero_convs.{number}.0.{rest}"] = value
        elif name.startswith("controlnet_mid_block."):
            out[name.replace("controlnet_mid_block", "middle_block_out.0")] = value
        else:
            unet[name] = value
    return out | original_unet(unet)


@pytest.mark.parametrize("family", ["sdxl", "flux", "qwenimage"])
def test_a_file_gives_what_its_folder_gives(family: str, tmp_path: Path) -> None:
    if not control_form(family_of(tiny.PIPELINE_CLASSES[family])):
        pytest.skip(f"this diffusers has no control form of {family}")
    model = tiny.build_controlnet(family)
    key = resolve_controlnet(str(write(model, tmp_path)))
    assert key.class_name == type(model).__name__
    pipeline = held(tiny.build(family))
    ours = sampling.run(pipeline, request(family, conditions=(control(family, model=key),)))
    (read,) = pipeline.controlnets.values()
    assert read.config["attention_head_dim"] == model.config["attention_head_dim"], "as the model has it"
    for name, tensor in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name
    # Weights that lie otherwise in memory may be multiplied otherwise.
    torch.testing.assert_close(ours.frames, sampling.run(pipeline, request(family)).frames, atol=1e-4, rtol=0)


@pytest.mark.parametrize("beginning", ["", "control_model."])
@pytest.mark.parametrize("name", ["canny", "control_v11e_sd15_shuffle"])
def test_stable_diffusions_own_names_are_read(name: str, beginning: str, tmp_path: Path) -> None:
    pipeline = stable_diffusion()
    model = diffusers.ControlNetModel.from_unet(
        pipeline.unet, conditioning_embedding_out_channels=(16, 16, 16, 16), load_weights_from_unet=False
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.1)
    file = tmp_path / f"{name}.safetensors"
    save_file({beginning + key: value.contiguous() for key, value in original(model).items()}, file)
    pooled = "shuffle" in name  # its output is averaged, which only its name tells
    steered = diffusers.StableDiffusionControlNetPipeline(**pipeline.components, controlnet=model.eval())
    model.register_to_config(global_pool_conditions=pooled)
    call = {"num_inference_steps": 2, "width": 96, "height": 64, "output_type": "np", "guidance_scale": 2.5}
    theirs = steered("a ship", image=to_pil(EDGES[0]), generator=torch.Generator().manual_seed(3), **call)[0]
    asked = request("sdxl", conditions=(control("sdxl", model=resolve_controlnet(str(file)), strength=1.0),), steps=2)
    ours = sampling.run(held(pipeline), asked)
    assert torch.equal(ours.frames, torch.from_numpy(theirs).unsqueeze(1))


def test_a_smaller_control_model_is_read_by_its_shapes(tmp_path: Path) -> None:
    """As the small ones for SDXL, which attend nowhere, or in the middle alone."""
    unet: Any = tiny.build("sdxl").unet
    takes = inspect.signature(diffusers.ControlNetModel).parameters
    names = {name: value for name, value in unet.config.items() if name in takes}
    small = {"down_block_types": ["DownBlock2D"] * len(unet.config.block_out_channels)}
    for middle in ("UNetMidBlock2D", "UNetMidBlock2DCrossAttn"):
        model = diffusers.ControlNetModel.from_config({**names, **small, "mid_block_type": middle})
        file = write(model, tmp_path / middle)
        key = resolve_controlnet(str(file))
        config = configuration(key, unet.config)
        check_tensors(key, config)
        assert (config["down_block_types"], config["mid_block_type"]) == (small["down_block_types"], middle)


def test_a_configuration_beside_the_file_goes_before(tmp_path: Path) -> None:
    """What the tensors of SD 3's and Z-Image's do not show."""
    if not control_form(family_of(tiny.PIPELINE_CLASSES["sd3"])):
        pytest.skip("this diffusers has no control form of SD 3")
    file = write(tiny.build_controlnet("sd3"), tmp_path)
    with pytest.raises(ModelFileError, match="no tensor of it shows its force_zeros_for_pooled_projection") as caught:
        resolve_controlnet(str(file))
    assert str(file.with_suffix("")) in str(caught.value)
    shutil.move(tmp_path / "saved", file.with_suffix(""))
    pipeline = held(tiny.build("sd3"))
    ours = sampling.run(pipeline, request("sd3", conditions=(control("sd3", model=resolve_controlnet(str(file))),)))
    torch.testing.assert_close(ours.frames, sampling.run(pipeline, request("sd3")).frames, atol=1e-4, rtol=0)
    before = resolve_controlnet(str(file))
    config = file.with_suffix("") / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 2}))
    edited = resolve_controlnet(str(file))
    assert edited != before
    with pytest.raises(InputError, match="are missing in it, the first is controlnet_blocks"):
        sampling.run(pipeline, request("sd3", conditions=(control("sd3", model=edited),)))


def test_a_file_for_a_model_of_other_sizes_is_refused_before_the_load(tmp_path: Path) -> None:
    tiny.save("sdxl", tmp_path / "model")
    file = write(tiny.build_controlnet("sdxl"), tmp_path)
    tensors = load_file(file)
    handle = PipelineHandle(loader.resolve(str(tmp_path / "model")))

    def refused(changed: dict[str, torch.Tensor], words: str) -> None:
        save_file(changed, file)
        asked = request("sdxl", conditions=(control("sdxl", model=resolve_controlnet(str(file))),))
        with pytest.raises((InputError, ModelFileError), match=words) as caught:
            generate(handle, asked, PLAIN)
        assert "\n" not in str(caught.value)
        assert CACHE.peek(handle.key) is None

    wider = {
        name: value.repeat(1, 2) if "attn2.to_k" in name or "attn2.to_v" in name else value
        for name, value in tensors.items()
    }
    refused(wider, "made for another model: its cross_attention_dim is 128, that of sdxl is 64")
    some = {name: value for name, value in tensors.items() if "mid_block.resnets.1" not in name}
    refused(some, "tensors of a ControlNetModel are missing in it, the first is mid_block.resnets.1")
    refused(tensors | {"extra.weight": torch.zeros(1)}, "1 tensors of it are none of a ControlNetModel's")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_controlnet", "input_blocks.0.0.weight"], "it is a Control-LoRA"),
        (["double_blocks.0.img_attn.qkv.weight", "controlnet_blocks.0.weight"], "under its authors' names"),
        (["body.0.block1.weight"], "it is a T2I-Adapter"),
        (["control_layers.0.x", "control_all_x_embedder.2-1.weight"], "shows its control_layers_places"),
        (["down_blocks.0.resnets.0.conv1.weight"], "none of a ControlNet's"),
    ],
)
def test_what_is_no_control_model_that_is_read_is_one_line(names: list[str], words: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "net.safetensors")
    with pytest.raises(ModelFileError, match=words) as caught:
        resolve_controlnet(str(tmp_path / "net.safetensors"))
    assert "\n" not in str(caught.value)
    (tmp_path / "net.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelFileError, match="not a safetensors file"):
        resolve_controlnet(str(tmp_path / "net.safetensors"))
