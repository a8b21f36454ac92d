"""FLUX.1 in parts in a real ComfyUI: its tokenizers, its own networks at full size, and the picture of the folder."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from comfy_client import nearly_equal

from fastdiffusers.errors import ModelFileError

sys.path.append(str(Path(__file__).parents[1] / "unit" / "pipelines"))

if TYPE_CHECKING:
    from comfy_client import Client

CLIP_TOKENIZER, T5_TOKENIZER = "comfy/sd1_tokenizer", "comfy/text_encoders/t5_tokenizer"
FILES = ("model", "clip_l", "t5xxl", "ae")
PLACES = {"model": "diffusion_models", "clip_l": "text_encoders", "t5xxl": "clip", "ae": "vae"}
CHOSEN = {"diffusion_model": "model", "text_encoder_1": "clip_l", "text_encoder_2": "t5xxl", "vae": "ae"}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "txt_ids_dims": [],
}
"""How ComfyUI describes FLUX.1."""


def core_tokenizers(comfyui: Path) -> dict[str, Any]:
    """The tokenizers that ComfyUI ships, as transformers reads them, with what FLUX.1 sets."""
    from transformers import CLIPTokenizer, T5TokenizerFast

    return {
        "tokenizer": CLIPTokenizer.from_pretrained(comfyui / CLIP_TOKENIZER, model_max_length=77),
        "tokenizer_2": T5TokenizerFast.from_pretrained(comfyui / T5_TOKENIZER, model_max_length=512),
    }


@pytest.fixture(scope="module")
def parts(comfyui: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A tiny FLUX.1 with the published vocabularies, among ComfyUI's models as files and as a diffusers folder."""
    from fastdiffusers.commands.libraries import declare_torchvision_ops

    declare_torchvision_ops()
    from original_layout import make_files
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from fastdiffusers.pipelines import tiny

    pipeline = tiny.build("flux-random")
    clip = pipeline.text_encoder.config.to_dict() | {"vocab_size": 49408, "eos_token_id": 2, "pad_token_id": 1}
    t5 = pipeline.text_encoder_2.config.to_dict() | {"vocab_size": 32128}
    torch.manual_seed(1)
    encoders = {
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(clip)).eval(),
        "text_encoder_2": T5EncoderModel(T5Config.from_dict(t5)).eval(),
    }
    pipeline.register_modules(**encoders, **core_tokenizers(comfyui))
    place = tmp_path_factory.mktemp("parts")
    pipeline.save_pretrained(place / "whole")
    files, twin = make_files(place / "whole", place)
    found = {}
    for name, kind in PLACES.items():
        found[name] = models / kind / f"parts-{name}.safetensors"
        found[name].parent.mkdir(parents=True, exist_ok=True)
        files[name].rename(found[name])
    beside = found["model"].with_suffix("")
    (place / "model").rename(beside)
    for name in ("tokenizer", "tokenizer_2"):
        for file in (beside / name).iterdir():
            file.unlink()
        (beside / name).rmdir()
    twin.rename(models / "diffusers" / "parts-twin")
    yield found
    # Other tests share these folders and take the first of a list.
    for file in found.values():
        file.unlink()
    shutil.rmtree(beside)
    shutil.rmtree(models / "diffusers" / "parts-twin")


def loader_node(server: Client, **changes: str) -> dict[str, Any]:
    chosen = {widget: f"parts-{name}.safetensors" for widget, name in CHOSEN.items()}
    return server.node("FastDiffusersLoadPipelineParts", **{**chosen, **changes})


def test_each_list_shows_what_fits_and_proposes_the_combination(server: Client, parts: dict[str, Path]) -> None:
    inputs = server.server.object_info()["FastDiffusersLoadPipelineParts"]["input"]["required"]
    for widget, name in CHOSEN.items():
        kind, *rest = inputs[widget]
        choices = rest[0]["options"] if kind == "COMBO" else kind
        assert f"parts-{name}.safetensors" in choices
        assert (choices[0] == "auto") == (widget != "diffusion_model"), "the first is what a new node has"
        assert "small_video_vae.safetensors" not in choices
        # Besides the files: "auto", that there is none, and of diffusion models the embedded one. Others' VAEs fit too.
        ours = [choice for choice in choices if choice.startswith("parts-") or not choice.endswith(".safetensors")]
        assert len(ours) == {"text_encoder_1": 4, "text_encoder_2": 3, "vae": 3, "diffusion_model": 2}[widget]
        assert choices[-1].startswith("embedded tiny: ") == (widget == "diffusion_model")


@pytest.mark.parametrize("given", ["in order", "swapped", "auto", "one"])
def test_the_picture_is_that_of_the_folder(server: Client, parts: dict[str, Path], given: str) -> None:
    widgets = {"width": 64, "height": 64, "steps": 2, "seed": 5, "guidance": 2.0, "prompt": "A red fox, 2 foxes"}
    whole = server.succeed(server.sampling("parts-twin", **widgets))
    prompt = server.sampling("parts-twin", **widgets)
    changes = {
        "in order": {},
        "swapped": {"text_encoder_1": "parts-t5xxl.safetensors", "text_encoder_2": "parts-clip_l.safetensors"},
        "auto": {"text_encoder_1": "auto", "text_encoder_2": "auto", "vae": "auto"},
        "one": {"text_encoder_1": "parts-t5xxl.safetensors", "text_encoder_2": "auto"},
    }
    prompt["load"] = loader_node(server, **changes[given])
    entry = server.succeed(prompt)
    assert "fingerprint_inputs" not in server.server.log(), "ComfyUI then runs the node, and all after it, each time"
    expected = server.images(whole)
    assert expected.std() > 1
    assert nearly_equal(server.images(entry), expected)
    assert torch.allclose(server.latent(entry), server.latent(whole), atol=1e-4)
    report = json.dumps(server.report(entry))
    assert all(f"parts-{name}.safetensors (float32" in report for name in FILES)
    assert "SD3's VAE has the same tensors" in report


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text_encoder_2": "parts-clip_l.safetensors"}, "T5-XXL"),
        ({"vae": "small_video_vae.safetensors"}, "ae.safetensors"),
        ({"diffusion_model": "missing.safetensors"}, "no such file"),
        ({"diffusion_model": "../clip/parts-t5xxl.safetensors"}, "no such file"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    server: Client, parts: dict[str, Path], changes: dict[str, str], said: str
) -> None:
    from fastdiffusers.scripts.comfyui_server import ServerError

    prompt = server.sampling("parts-twin", steps=1)
    prompt["load"] = loader_node(server, **changes)
    with pytest.raises(ServerError, match=said):
        server.server.queue(prompt)


def test_an_exchanged_file_runs_again(server: Client, parts: dict[str, Path]) -> None:
    from safetensors.torch import load_file, save_file

    prompt = server.sampling("parts-twin", width=64, height=64, steps=1, seed=5, prompt="a fox")
    prompt["load"] = loader_node(server)
    before = server.images(server.succeed(prompt))
    whole = load_file(parts["ae"])
    try:
        replacement = parts["ae"].with_name("new.tmp")
        save_file(
            {key: value * 1.5 if key == "decoder.conv_out.bias" else value for key, value in whole.items()}
            | {"decoder.conv_out.weight": -whole["decoder.conv_out.weight"]},
            replacement,
        )
        replacement.replace(parts["ae"])
        assert not np.array_equal(server.images(server.succeed(prompt)), before)
    finally:
        save_file(whole, replacement)
        replacement.replace(parts["ae"])
    assert np.array_equal(server.images(server.succeed(prompt)), before)


def test_the_tokens_are_those_of_comfyui(core: Any, comfyui: Path, tmp_path: Path) -> None:
    from comfy.text_encoders.flux import FluxTokenizer

    from fastdiffusers.pipelines.loading.parts.models import flux
    from fastdiffusers.pipelines.loading.parts.read import read_tokenizer

    nowhere = tmp_path / "none.safetensors"
    own = {
        name: read_tokenizer(name, tokenizer, nowhere, str(comfyui), {})
        for name, tokenizer in flux.FAMILIES[0].tokenizers.items()
    }
    for text in (
        "A red fox, 2 foxes.",
        "snow   and  Ice",
        "\u00e9t\u00e9 \u65e5\u672c 100% #hash",
        "one\ntwo",
        "",
        "fox " * 60,
    ):
        theirs = {
            side: [[token[0] for token in chunk] for chunk in chunks]
            for side, chunks in FluxTokenizer().tokenize_with_weights(text).items()
        }
        clip = own["tokenizer"](text, padding="max_length", truncation=True, max_length=77).input_ids
        assert clip == theirs["l"][0], text
        assert own["tokenizer"].model_max_length == 77
        t5 = own["tokenizer_2"](text, padding="max_length", truncation=True, max_length=512).input_ids
        padded = theirs["t5xxl"][0] + [0] * (512 - len(theirs["t5xxl"][0]))
        assert t5 == padded, text
        assert own["tokenizer_2"].model_max_length == 512


def full_size(core: Any, comfyui: Path, guidance: bool) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names and shapes of the published files, from ComfyUI's own networks, which read them."""
    import comfy.clip_model
    import comfy.ldm.flux.model
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.model import Decoder, Encoder
    from comfy.text_encoders.t5 import T5

    operations = comfy.ops.disable_weight_init
    settings = {
        name: json.loads((comfyui / "comfy" / file).read_text())
        for name, file in (("clip", "sd1_clip_config.json"), ("t5", "text_encoders/t5_config_xxl.json"))
    }
    vae = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128}
    vae |= {"ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    how = {"dtype": torch.bfloat16, "device": "meta", "operations": operations}
    with torch.device("meta"):
        model = comfy.ldm.flux.model.Flux(**FLUX, guidance_embed=guidance, **how).state_dict()
        clip = comfy.clip_model.CLIPTextModel(settings["clip"], **how).state_dict()
        t5 = T5(settings["t5"], **how).state_dict()
        halves = {"encoder": Encoder(**vae), "decoder": Decoder(**vae)}
    ae = {f"{half}.{key}": value for half, network in halves.items() for key, value in network.state_dict().items()}
    model = {key.replace("_norm.weight", "_norm.scale"): value for key, value in model.items()}
    found = zip(FILES, (model, clip, t5, ae), strict=True)
    return {name: {key: tuple(value.shape) for key, value in tensors.items()} for name, tensors in found}


def write_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A file of that size of which only the header takes room."""
    entries, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape, dtype=np.int64))
        entries[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


@pytest.mark.parametrize("variant", ["dev", "schnell"])
def test_the_published_sizes_are_recognised_and_built(core: Any, comfyui: Path, tmp_path: Path, variant: str) -> None:
    import diffusers

    from fastdiffusers.pipelines.loading import loader
    from fastdiffusers.pipelines.loading.parts import kind_of_part, plan
    from fastdiffusers.pipelines.loading.parts.header import read_part
    from fastdiffusers.pipelines.loading.parts.models import flux

    shapes = full_size(core, comfyui, guidance=variant == "dev")
    paths = {name: tmp_path / f"{name}.safetensors" for name in FILES}
    for name, path in paths.items():
        write_header(path, shapes[name])
    encoders = [str(paths["t5xxl"]), str(paths["clip_l"])]
    key = loader.resolve(str(paths["model"]), in_parts=True, text_encoders=encoders, vae=str(paths["ae"]), device="cpu")
    family = plan.family_of_part(paths["model"])
    assert family.title == f"FLUX.1 {variant}"
    slots = dict(zip(family.components, FILES, strict=True))
    assert dict(key.parts) == {slot: str(paths[name]) for slot, name in slots.items()}
    kinds = ["diffusion model", "text encoder", "text encoder", "VAE"]
    assert [kind_of_part(paths[name]) for name in slots.values()] == kinds
    for slot, name in slots.items():
        component = family.components[slot]
        config = plan.configuration(slot, component, read_part(paths[name], name), paths["model"])
        built = plan.empty_network(component, config)
        count = sum(value.numel() for value in built.parameters())
        kept = {tensor: shape for tensor, shape in shapes[name].items() if tensor != "text_projection.weight"}
        assert count == sum(int(np.prod(shape, dtype=np.int64)) for shape in kept.values()), slot
    published = diffusers.FluxTransformer2DModel.from_config(
        {"guidance_embeds": variant == "dev", "num_layers": 0, "num_single_layers": 0}
    ).config
    made = family.components["transformer"].config(read_part(paths["model"], "model").shapes)
    assert (made.pop("num_layers"), made.pop("num_single_layers")) == (19, 38)
    assert {name: list(value) if isinstance(value := published[name], tuple) else value for name in made} == made
    assert flux.scheduler(variant == "dev")["use_dynamic_shifting"] is (variant == "dev")
    assert loader.family_of_key(key).name == "flux"


def test_the_list_of_a_wrong_size_is_refused(core: Any, comfyui: Path, tmp_path: Path) -> None:
    """A CLIP of another width has CLIP-L's names, and a diffusion model of other heads has no known configuration."""
    from fastdiffusers.pipelines.loading import loader

    shapes = full_size(core, comfyui, guidance=True)
    paths = {name: tmp_path / f"{name}.safetensors" for name in FILES}
    for name, path in paths.items():
        write_header(path, shapes[name])
    write_header(
        paths["clip_l"], {key: tuple(512 if n == 768 else n for n in shape) for key, shape in shapes["clip_l"].items()}
    )
    rest = {"in_parts": True, "vae": str(paths["ae"]), "device": "cpu"}
    with pytest.raises(ModelFileError, match=r"clip_l\.safetensors.*does not fit"):
        loader.resolve(str(paths["model"]), text_encoders=[str(paths["t5xxl"]), str(paths["clip_l"])], **rest)


def test_the_configurations_are_those_of_comfyui(core: Any, comfyui: Path) -> None:
    import comfy.latent_formats

    from fastdiffusers.pipelines.loading.parts import clips, encoders, vaes

    latents = comfy.latent_formats.Flux()
    vae = vaes.FLUX_VAE
    assert (vae["scaling_factor"], vae["shift_factor"]) == (latents.scale_factor, latents.shift_factor)
    assert vae["latent_channels"] == latents.latent_channels
    for ours, file, least in (
        (clips.CLIP_L, "sd1_clip_config.json", 9),
        (encoders.T5_XXL, "text_encoders/t5_config_xxl.json", 8),
        (encoders.UMT5_XXL, "text_encoders/umt5_config_xxl.json", 8),
    ):
        theirs = json.loads((comfyui / "comfy" / file).read_text())
        shared = ours.keys() & theirs.keys() - {"eos_token_id"}  # ComfyUI pools at its own token, FLUX.1 at the largest
        assert len(shared) >= least
        assert {key: ours[key] for key in shared} == {key: theirs[key] for key in shared}
