"""Whole checkpoints without the Hub: this pack's configurations at full size, and the picture of a small SDXL."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parents[1] / "unit" / "pipelines"))

SIZES: dict[str, dict[str, Any]] = {
    "xl_base": {
        "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2],
        "num_head_channels": 64,
        "use_linear_in_transformer": True,
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "context_dim": 2048,
        "adm_in_channels": 2816,
        "num_classes": "sequential",
    },
    "v1": {
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "num_heads": 8,
        "use_linear_in_transformer": False,
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "context_dim": 768,
    },
}
"""How ComfyUI describes the networks."""
CLIP = {"xl_base": "conditioner.embedders.0.transformer.", "v1": "cond_stage_model.transformer."}
OPEN_CLIP = "conditioner.embedders.1.model."


def shapes_of_open_clip(width: int, layers: int) -> dict[str, tuple[int, ...]]:
    """The names of OpenCLIP's own code."""
    found = {
        "positional_embedding": (77, width),
        "token_embedding.weight": (49408, width),
        "text_projection": (width, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
    }
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        found |= {block + "attn.in_proj_weight": (3 * width, width), block + "attn.in_proj_bias": (3 * width,)}
        for name, (rows, columns) in {
            "attn.out_proj": (width, width),
            "mlp.c_fc": (4 * width, width),
            "mlp.c_proj": (width, 4 * width),
        }.items():
            found |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
        found |= {f"{block}{name}.{kind}": (width,) for name in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return {OPEN_CLIP + name: shape for name, shape in found.items()}


@pytest.mark.parametrize("kind", ["xl_base", "v1"])
def test_the_published_sizes_are_those_of_comfyui(core: Any, comfyui: Path, kind: str) -> None:
    import comfy.clip_model
    import comfy.ops
    import diffusers
    import transformers
    from comfy.ldm.modules.diffusionmodules.model import Decoder, Encoder
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from diffusers.loaders import single_file_utils as converters

    from fastdiffusers.pipelines.loading.parts.checkpoint import PUBLISHED

    how = {"dtype": torch.float16, "device": "meta", "operations": comfy.ops.disable_weight_init}
    sizes = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, **copy.deepcopy(SIZES[kind])}
    vae = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    vae |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    clip = json.loads((comfyui / "comfy" / "sd1_clip_config.json").read_text())
    with torch.device("meta"):
        unet = UNetModel(**sizes, use_spatial_transformer=True, **how).state_dict()
        file = {f"model.diffusion_model.{key}": value for key, value in unet.items()}
        for half, network in (("encoder", Encoder(**vae)), ("decoder", Decoder(**vae))):
            file |= {f"first_stage_model.{half}.{key}": value for key, value in network.state_dict().items()}
        file |= {f"first_stage_model.quant_conv.{key}": torch.empty(8, *rest) for key, rest in QUANT.items()}
        file |= {f"first_stage_model.post_quant_conv.{key}": torch.empty(4, *rest) for key, rest in POST.items()}
        text = comfy.clip_model.CLIPTextModel(clip, **how).state_dict()
        file |= {CLIP[kind] + key: value for key, value in text.items() if key != "text_projection.weight"}
        if kind == "xl_base":
            file |= {key: torch.empty(shape) for key, shape in shapes_of_open_clip(1280, 32).items()}
        assert converters.infer_diffusers_model_type(file) == kind
        for name, (library, class_name, config) in PUBLISHED[kind].items():
            if name == "scheduler":
                continue
            if library == "diffusers":
                model = getattr(diffusers, class_name).from_config(config)
                convert = {"unet": converters.convert_ldm_unet_checkpoint, "vae": converters.convert_ldm_vae_checkpoint}
                held = convert[name](dict(file), model.config)
            else:
                model_class = getattr(transformers, class_name)
                model = model_class(model_class.config_class(**config))
                if name == "text_encoder_2":
                    held = converters.convert_open_clip_checkpoint(model, file, prefix=OPEN_CLIP)
                else:
                    held = converters.convert_ldm_clip_checkpoint(dict(file))
                flat = not hasattr(model, "text_model")
                held = {key.removeprefix("text_model.") if flat else key: value for key, value in held.items()}
            wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
            assert {key: tuple(value.shape) for key, value in held.items() if key in wanted} == wanted, name


QUANT: dict[str, tuple[int, ...]] = {"weight": (8, 1, 1), "bias": ()}
POST: dict[str, tuple[int, ...]] = {"weight": (4, 1, 1), "bias": ()}


def small_sdxl(comfyui: Path) -> Any:
    """The tiny SDXL with the published vocabulary, and ten layers in its second encoder, by which it is told."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from fastdiffusers.pipelines import tiny

    pipeline = tiny.build("sdxl")
    torch.manual_seed(0)
    shared = {"vocab_size": 49408, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    first = pipeline.text_encoder.config.to_dict() | shared
    second = first | {"hidden_size": 64, "projection_dim": 64, "intermediate_size": 256, "num_hidden_layers": 10}
    unet = dict(pipeline.unet.config) | {"cross_attention_dim": 96, "projection_class_embeddings_input_dim": 112}
    source = comfyui / "comfy" / "sd1_tokenizer"
    tokenizers = {
        name: CLIPTokenizer.from_pretrained(source, model_max_length=77, pad_token=pad)
        for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!"))
    }
    pipeline.register_modules(
        unet=UNet2DConditionModel.from_config(unet).eval(),
        text_encoder=CLIPTextModel(CLIPTextConfig.from_dict(first)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig.from_dict(second | {"hidden_act": "gelu"})).eval(),
        **tokenizers,
    )
    return pipeline


def original(pipeline: Any) -> dict[str, torch.Tensor]:
    """A checkpoint in the layout of Stability's code: the U-Net's names from ComfyUI, the others by the test."""
    import comfy.utils
    from original_layout import original_vae

    described = {"num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [0, 2]}
    described |= {"transformer_depth_middle": 2, "transformer_depth_output": [0, 0, 2, 2]}
    names = comfy.utils.unet_to_diffusers(described)
    file = {f"model.diffusion_model.{names[key]}": value for key, value in pipeline.unet.state_dict().items()}
    file |= {f"first_stage_model.{key}": value for key, value in original_vae(pipeline.vae.state_dict()).items()}
    for key, value in pipeline.text_encoder.state_dict().items():
        file[CLIP["xl_base"] + "text_model." + key.removeprefix("text_model.")] = value
    state = {key.removeprefix("text_model."): value for key, value in pipeline.text_encoder_2.state_dict().items()}
    plain = {
        "positional_embedding": "embeddings.position_embedding.weight",
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "ln_final.weight": "final_layer_norm.weight",
        "ln_final.bias": "final_layer_norm.bias",
    }
    file |= {OPEN_CLIP + ours: state[theirs] for ours, theirs in plain.items()}
    file[OPEN_CLIP + "text_projection"] = state["text_projection.weight"].T
    layer = {"attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    layer |= {"ln_1": "layer_norm1", "ln_2": "layer_norm2"}
    for number in range(10):
        block, theirs = f"{OPEN_CLIP}transformer.resblocks.{number}.", f"encoder.layers.{number}."
        for kind in ("weight", "bias"):
            fused = [state[f"{theirs}self_attn.{side}_proj.{kind}"] for side in "qkv"]
            file[f"{block}attn.in_proj_{kind}"] = torch.cat(fused)
            file |= {f"{block}{a}.{kind}": state[f"{theirs}{b}.{kind}"] for a, b in layer.items()}
    return {key: value.contiguous().clone() for key, value in file.items()}


@pytest.mark.parametrize("marks", [(), ("v_pred", "ztsnr")])
def test_a_checkpoint_gives_the_picture_of_its_folder(
    core: Any, comfyui: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marks: tuple[str, ...]
) -> None:
    from diffusers import EulerDiscreteScheduler

    from fastdiffusers.pipelines.loading import loader
    from fastdiffusers.pipelines.loading.parts import checkpoint

    pipeline = small_sdxl(comfyui)
    published = checkpoint.PUBLISHED["xl_base"]
    small: dict[str, Any] = {"scheduler": published["scheduler"]}
    for name, (library, class_name, _) in published.items():
        if name != "scheduler":
            config = getattr(pipeline, name).config
            small[name] = (library, class_name, config.to_dict() if library == "transformers" else dict(config))
    monkeypatch.setitem(checkpoint.PUBLISHED, "xl_base", small)
    file = tmp_path / "small.safetensors"
    save_file(original(pipeline) | {mark: torch.zeros(1) for mark in marks}, file)
    key = loader.resolve(str(file), dtype="float32", device="cpu", comfyui=comfyui)
    made = loader.load(key).pipeline
    assert type(made) is type(pipeline)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = (getattr(each, name).state_dict() for each in (made, pipeline))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[tensor], theirs[tensor]) for tensor in theirs), name
    assert isinstance(made.scheduler, EulerDiscreteScheduler)
    told = made.scheduler.config.prediction_type, made.scheduler.config.rescale_betas_zero_snr
    assert told == (("v_prediction", True) if marks else ("epsilon", False))
    pipeline.register_modules(scheduler=EulerDiscreteScheduler.from_config(made.scheduler.config))
    pictures = []
    for each in (made, pipeline):
        each.set_progress_bar_config(disable=True)
        options = {"width": 64, "height": 64, "num_inference_steps": 2, "output_type": "np"}
        pictures.append(each("a fox", generator=torch.Generator().manual_seed(1), **options).images)
    assert pictures[0].std() > 0
    assert np.array_equal(*pictures)
