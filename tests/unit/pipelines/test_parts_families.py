"""Models in parts, family by family: what is loaded is what the diffusers folder of the same weights holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_families import FAMILIES, LAYOUTS, MODEL_NAMES, build, restored, stored_as, write
from safetensors.torch import load_file, save_file
from sentencepiece_model import sentencepiece_model

from fastdiffusers.callbacks import Callbacks, Progress
from fastdiffusers.errors import InputError, MissingDependencyError, ModelFileError
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.parts import DIFFUSION_MODEL, TEXT_ENCODER, UNREADABLE, VAE, kind_of_part
from fastdiffusers.pipelines.loading.parts.header import read_part
from fastdiffusers.pipelines.loading.parts.plan import configuration, family_of_part, problem_of
from fastdiffusers.pipelines.loading.parts.read import read_component

pytestmark = pytest.mark.usefixtures("small_edit_pictures", "widened_convolutions")


def resolve(files: dict[str, Path], dtype: str = "float32", **changes: Any) -> Any:
    models = [path for name, path in files.items() if name.startswith("model")]
    texts = [str(path) for name, path in files.items() if name.startswith("text")]
    given: dict[str, Any] = {"text_encoders": texts, "vae": str(files["vae"])}
    if len(models) > 1:
        given["second_expert"] = str(models[1])
    given |= changes
    return loader.resolve(str(given.pop("model", models[0])), in_parts=True, dtype=dtype, device="cpu", **given)


def tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}


def assert_same(made: Any, expected: Any) -> None:
    """The same class, components, configurations and weights."""
    assert type(made) is type(expected)
    assert made.components.keys() == expected.components.keys()
    for name, component in expected.components.items():
        other = made.components[name]
        assert type(other) is type(component), name
        if isinstance(component, torch.nn.Module):
            ours, theirs = tensors(other), tensors(component)
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                assert ours[key].dtype == value.dtype, (name, key)
                assert torch.equal(ours[key], value), (name, key)
    for setting in ("boundary_ratio", "expand_timesteps", "is_distilled"):
        assert made.config.get(setting) == expected.config.get(setting)


def in_own_memory(pipeline: Any) -> Any:
    """With weights that lie alike in memory: mapped from files they do not, and a processor rounds otherwise there."""
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            for tensor in tensors(component).values():
                tensor.data = tensor.data.clone()
    return pipeline


def picture(pipeline: Any) -> np.ndarray:
    video = "Wan" in type(pipeline).__name__
    more: dict[str, Any] = {"num_frames": 5} if video else {}
    if any(word in type(pipeline).__name__ for word in ("ImageToVideo", "Edit", "Fill", "Kontext")):
        from PIL import Image

        more["image"] = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    if "Fill" in type(pipeline).__name__:
        more["mask_image"] = Image.fromarray(np.eye(32, dtype=np.uint8) * 255)
    if "QwenImage" in type(pipeline).__name__:
        more["negative_prompt"] = " "
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt="a fox",
        num_inference_steps=2,
        width=32,
        height=32,
        output_type="np",
        generator=torch.Generator().manual_seed(1),
        **more,
    )
    return np.asarray(made.frames if video else made.images)


@pytest.mark.parametrize(
    ("family", "precision", "encoder", "dtype"),
    [
        ("zimage", "scaled fp8", "fp8", "float32"),
        ("flux2-klein", "bfloat16", "scaled fp8", "bfloat16"),
        ("qwenimage", "fp8", "scaled fp8", "bfloat16"),
        ("qwenimage", "float32", "comfy_quant", "float32"),
        ("qwenimage-edit", "bfloat16", "bfloat16", "bfloat16"),
        ("wan22-t2v", "float16", "float32", "bfloat16"),
        ("wan22-t2v", "comfy_quant", "scaled fp8", "float32"),
        ("wan22-i2v", "float32", "float32", "float32"),
        ("flux-fill", "scaled fp8", "fp8", "float32"),
        ("chroma", "scaled fp8", "scaled fp8", "bfloat16"),
        ("sdxl", "float16", "float16", "float16"),
        ("sdxl", "scaled fp8", "fp8", "float32"),
        ("sd3", "bfloat16", "bfloat16", "bfloat16"),
        ("sd3", "fp8", "scaled fp8", "float32"),
        ("wan21-i2v", "scaled fp8", "fp8", "float32"),
        ("wan22-5b", "float16", "scaled fp8", "bfloat16"),
        ("krea2", "bfloat16", "scaled fp8", "bfloat16"),
        ("krea2", "scaled fp8", "fp8", "float32"),
        ("zimage", "nvfp4", "int8 rows", "bfloat16"),
        ("flux-fill", "int8", "mxfp8", "float32"),
        ("sd3", "int8 rotated", "nvfp4", "bfloat16"),
        ("wan22-5b", "mxfp8", "float32", "float32"),
    ],
)
def test_what_is_loaded_is_what_the_folder_holds(
    family: str, precision: str, encoder: str, dtype: str, tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    if {precision, encoder} & {*LAYOUTS}:
        pytest.importorskip("comfy_kitchen")
    files, twin = write(family, build(family), tmp_path, precision, encoder)
    kinds = {"text": TEXT_ENCODER, "vae": VAE}
    assert {name: kind_of_part(path) for name, path in files.items()} == {
        name: kinds.get(name.split("_")[0], DIFFUSION_MODEL) for name in files
    }
    loaded = loader.load(resolve(files, dtype))
    expected = DiffusionPipeline.from_pretrained(twin, torch_dtype=getattr(torch, dtype))
    assert_same(loaded.pipeline, expected)
    made = picture(in_own_memory(loaded.pipeline))
    assert made.std() > 0
    assert np.array_equal(made, picture(in_own_memory(expected)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_diffusion_model_is_read_in_every_precision(family: str, tmp_path: Path) -> None:
    """What is quantized is what its numbers stand for, written out by hand; all else is bit for bit. GGUF has a test of
    its own."""
    for name, (slot, original) in FAMILIES[family].items():
        if not name.startswith("model"):
            continue
        path = tmp_path / f"{name.replace('model', MODEL_NAMES.get(family, 'model'))}.safetensors"
        assert_read_in_every_precision(getattr(build(family), slot), slot, original, path)


def assert_read_in_every_precision(network: Any, slot: str, original: Any, path: Path) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.save_config(path.with_suffix("") / slot)
    for precision in ("bfloat16", "float16", "fp8", "fp8 e5m2", "scaled fp8", "comfy_quant"):
        stored, meant = stored_as(original(before), precision, ("embed_tokens.weight",))
        save_file({key: value.contiguous() for key, value in stored.items()}, path)
        found, part = family_of_part(path), read_part(path, "diffusion_model")
        assert problem_of(found, slot, path, path, "diffusion_model") == "", precision
        assert precision.replace("comfy_quant", "scaled fp8 e4m3") in part.precision
        dtype = getattr(torch, precision, torch.float32)
        component = found.components[slot]
        made = read_component(component, part, configuration(slot, component, part, path), dtype).state_dict()
        expected = restored(before, original, meant)
        assert made.keys() == expected.keys()
        for key, value in made.items():
            assert value.dtype in (dtype, torch.float32), (precision, key)
            assert torch.equal(value, expected[key].to(value.dtype)), (precision, key)


@pytest.mark.parametrize("precision", ["fp8", "fp8 e5m2"])
def test_fp8_stays_as_its_file_has_it(precision: str, tmp_path: Path) -> None:
    """Kept in fp8 and cast layer by layer, the weights are the same as those that are cast while loading."""
    files, _ = write("zimage", build("zimage"), tmp_path, precision)
    cast = loader.load(resolve(files))
    kept = loader.load(resolve(files, quantization="layerwise-fp8"))
    kind = torch.float8_e5m2 if "e5m2" in precision else torch.float8_e4m3fn
    held = {key: value for key, value in kept.pipeline.transformer.state_dict().items() if value.dtype == kind}
    assert sum(key.endswith(".weight") for key in held) >= 20
    widened = cast.pipeline.transformer.state_dict()
    assert all(torch.equal(value.float(), widened[key]) for key, value in held.items())
    assert {value.dtype for value in kept.pipeline.transformer.state_dict().values()} == {kind, torch.float32}
    assert np.array_equal(picture(in_own_memory(kept.pipeline)), picture(in_own_memory(cast.pipeline)))
    assert f"(fp8 {'e5m2' if 'e5m2' in precision else 'e4m3'}, kept" in kept.facts["parts"]["transformer"]
    assert "fp8 in" in kept.facts["quantization"]["transformer"]


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write("wan22-t2v", build("wan22-t2v"), tmp_path_factory.mktemp("wan"))[0]


@pytest.fixture(scope="module")
def zimage(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write("zimage", build("zimage"), tmp_path_factory.mktemp("zimage"))[0]


def test_the_load_is_told_in_mebibytes_and_stops_within_a_file(zimage: dict[str, Path]) -> None:
    seen: list[Progress] = []
    key = resolve(zimage, "bfloat16")  # in float32 it would be mapped, at once
    loader.load(key, Callbacks(seen.append))
    total = -(-sum(Path(path).stat().st_size for _, path in key.parts) // 2**20)
    assert {(each.stage, each.total) for each in seen} == {("load", total)}
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert seen[-1].done == total
    of_model = [each for each in seen if each.message == "transformer, in MiB"]
    assert len(of_model) > 20

    class Cancelled(BaseException):
        pass

    def stop(progress: Progress) -> None:
        stopped.append(progress)
        if len(stopped) == 10:
            raise Cancelled

    stopped: list[Progress] = []
    with pytest.raises(Cancelled):
        loader.load(key, Callbacks(stop))
    assert len(stopped) == 10
    assert stopped[-1].message == "transformer, in MiB"


def test_parts_are_checked_again_before_they_load(
    wan: dict[str, Path], zimage: dict[str, Path], tmp_path: Path
) -> None:
    """As the cache does, whatever the files are called, two experts and an encoder of pictures among them."""
    pictures = write("wan21-i2v", build("wan21-i2v"), tmp_path)[0]
    encoded = ["none", str(pictures["text_of_pictures"])]
    for key in (resolve(wan), resolve(zimage), resolve(pictures), resolve(pictures, text_encoders=encoded)):
        with CACHE.use(key) as loaded:
            assert loaded.key == key
    CACHE.clear()


def test_wrong_pairings_are_refused_by_name(wan: dict[str, Path], zimage: dict[str, Path]) -> None:
    high, low = (str(wan[f"model_{level}_noise"]) for level in ("high", "low"))
    for files, changes, said in (
        (wan, {"text_encoders": [str(zimage["text"])]}, r"no text encoder of Wan.*umt5_xxl"),
        (wan, {"vae": str(zimage["vae"])}, r"does not fit.*wan_2\.1_vae"),
        (wan, {"second_expert": ""}, r"one of the two experts.*low_noise"),
        (wan, {"model": low}, r"expert for little noise.*high_noise"),
        (wan, {"second_expert": high}, r"expert for much noise.*low_noise"),
        (zimage, {"second_expert": low}, "one diffusion model"),
        (zimage, {"text_encoders": [str(wan["text"])]}, r"no text encoder of Z-Image.*qwen_3_4b"),
        (zimage, {"text_encoders": [str(zimage["text"])] * 2}, "is that too"),
        (zimage, {"text_encoders": []}, r"Z-Image needs Qwen3-4B"),
        (zimage, {"vae": ""}, r"ae\.safetensors"),
        (zimage, {"vae": str(wan["vae"])}, r"does not fit.*ae\.safetensors"),
    ):
        with pytest.raises(InputError, match=said) as error:
            resolve(files, **changes)
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def further(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Family -> its files."""
    places = {
        family: tmp_path_factory.mktemp(family)
        for family in ("flux-fill", "sdxl", "sd3", "wan21-i2v", "wan22-5b", "chroma", "krea2", "zimage", "qwenimage")
    }
    loras = tmp_path_factory.mktemp("loras")
    names = {
        "kohya": "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
        "comfyui": "text_encoders.t5xxl.encoder.block.0.layer.0.SelfAttention.q.lora_up.weight",
        "peft": "diffusion_model.blocks.0.attn.wq.lora_A.weight",
    }
    for kind, name in names.items():
        save_file({name: torch.zeros(4, 4)}, loras / f"{kind}.safetensors")
    written = {family: write(family, build(family), place)[0] for family, place in places.items()}
    # As llama.cpp calls the tensors of a text encoder.
    write_gguf(
        loras / "t5.gguf", {"token_embd.weight": torch.zeros(4, 32), "enc.blk.0.attn_q.weight": torch.ones(4, 32)}
    )
    encoders = {"t5": loras / "t5.gguf"}
    return {**written, "lora": {kind: loras / f"{kind}.safetensors" for kind in names}, "gguf": encoders}


def write_gguf(path: Path, state: dict[str, torch.Tensor]) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "t5")
    for key, value in state.items():
        writer.add_tensor(key, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("family", "given", "said"),
    [
        ("flux-fill", {"vae": ("sdxl", "vae")}, r"does not fit.*ae\.safetensors"),
        ("flux-fill", {"text_encoders": [("flux-fill", "text")]}, "needs T5-XXL"),
        ("sdxl", {"vae": ("sd3", "vae")}, r"does not fit.*sdxl_vae\.safetensors"),
        ("sdxl", {"text_encoders": [("sdxl", "text")]}, r"needs CLIP-G.*clip_g\.safetensors"),
        ("sdxl", {"text_encoders": [("sdxl", "text"), ("sdxl", "text")]}, "is that too.*clip_g"),
        ("sdxl", {"text_encoders": [("sdxl", "text"), ("sd3", "text_3")]}, "no text encoder of SDXL"),
        ("sd3", {"text_encoders": [("sd3", "text"), ("sd3", "text_3")]}, r"needs CLIP-G.*clip_g\.safetensors"),
        ("sd3", {"vae": ("sdxl", "vae")}, r"does not fit.*SD 3's VAE"),
        ("wan21-i2v", {"text_encoders": [("wan21-i2v", "text")]}, r"needs CLIP-H.*clip_vision_h"),
        ("wan21-i2v", {"vae": ("wan22-5b", "vae")}, r"does not fit.*wan_2\.1_vae"),
        ("wan21-i2v", {"text_encoders": [("wan21-i2v", "text"), "none"]}, "they go together"),
        ("wan22-5b", {"vae": ("wan21-i2v", "vae")}, r"does not fit.*wan2\.2_vae"),
        ("wan22-5b", {"text_encoders": [("wan21-i2v", "text_of_pictures")]}, "no text encoder of Wan 2.2 5B"),
        ("wan22-5b", {"second_expert": ("wan22-5b", "model")}, "one diffusion model"),
        ("chroma", {"text_encoders": []}, r"Chroma needs T5-XXL, usually t5xxl"),
        ("chroma", {"text_encoders": [("chroma", "text"), ("flux-fill", "text")]}, r"no text encoder of Chroma"),
        ("chroma", {"text_encoders": [("flux-fill", "text")]}, r"no text encoder of Chroma.*t5xxl_fp16"),
        ("chroma", {"text_encoders": [("wan22-5b", "text")]}, r"t5xxl_fp16"),
        ("chroma", {"text_encoders": [("krea2", "text")]}, r"no text encoder of Chroma.*t5xxl_fp16"),
        ("chroma", {"text_encoders": [("chroma", "text"), ("chroma", "text")]}, "is that too"),
        ("chroma", {"vae": ("sdxl", "vae")}, r"does not fit.*ae\.safetensors"),
        ("chroma", {"vae": ("krea2", "vae")}, r"does not fit.*ae\.safetensors"),
        ("chroma", {"vae": ("lora", "kohya")}, r"it is a LoRA.*ae\.safetensors"),
        ("chroma", {"text_encoders": [("lora", "comfyui")]}, r"a LoRA, and no text encoder of Chroma.*t5xxl_fp16"),
        ("chroma", {"model": ("lora", "kohya")}, "it is a LoRA.*the diffusion model that it changes.*--lora"),
        ("chroma", {"model": ("lora", "comfyui")}, "it is a LoRA"),
        ("chroma", {"model": ("chroma", "text")}, r"it is T5-XXL, and not .*--text-encoder, and here .*Chroma's"),
        ("chroma", {"model": ("gguf", "t5")}, r"it is a text encoder, as llama\.cpp.*--text-encoder its \.safetensors"),
        ("chroma", {"text_encoders": [("gguf", "t5")]}, r"GGUF is read for diffusion.*T5-XXL, usually t5xxl_fp16"),
        ("chroma", {"vae": ("gguf", "t5")}, r"GGUF is read for diffusion models only.*ae\.safetensors"),
        ("chroma", {"second_expert": ("chroma", "model")}, "one diffusion model"),
        ("krea2", {"text_encoders": []}, r"Krea 2 needs Qwen3-VL-4B, usually"),
        ("krea2", {"text_encoders": [("chroma", "text")]}, r"no text encoder of Krea 2.*Qwen3-VL-4B, usually"),
        ("krea2", {"text_encoders": [("zimage", "text")]}, r"Qwen3-VL-4B, usually"),
        ("krea2", {"text_encoders": [("krea2", "text"), ("krea2", "text")]}, "is that too"),
        ("krea2", {"vae": ("chroma", "vae")}, r"does not fit.*qwen_image_vae"),
        ("krea2", {"vae": ("wan22-5b", "vae")}, r"does not fit.*qwen_image_vae"),
        ("krea2", {"vae": ("lora", "peft")}, r"it is a LoRA.*qwen_image_vae"),
        ("krea2", {"model": ("lora", "peft")}, "it is a LoRA.*the diffusion model that it changes.*--lora"),
        ("krea2", {"model": ("krea2", "vae")}, r"Qwen-Image's VAE.*, and not .*--vae, and here .*Krea 2's"),
        ("krea2", {"model": ("krea2", "text")}, r"it is .*Qwen3-VL-4B.*--text-encoder, and here .*Krea 2's"),
        ("krea2", {"model": ("gguf", "t5")}, r"it is a text encoder, as llama\.cpp"),
        ("krea2", {"text_encoders": [("gguf", "t5")]}, r"GGUF is read for diffusion.*Qwen3-VL-4B, usually qwen3vl"),
        ("krea2", {"vae": ("gguf", "t5")}, r"GGUF is read for diffusion models only.*qwen_image_vae"),
        ("krea2", {"model": ("sdxl", "text_2")}, r"it is CLIP-G.*--text-encoder, and here .*SDXL's"),
        ("qwenimage", {"text_encoders": [("chroma", "text")]}, r"no text encoder of Qwen-Image.*qwen_2\.5_vl_7b"),
        ("qwenimage", {"text_encoders": [("gguf", "t5")]}, r"GGUF is read for diffusion.*qwen_2\.5_vl_7b"),
        ("krea2", {"second_expert": ("krea2", "model")}, "one diffusion model"),
        ("zimage", {"text_encoders": [("krea2", "text")]}, r"Qwen3-4B, usually"),
    ],
)
def test_wrong_pairings_of_more_families_are_refused_by_name(
    further: dict[str, dict[str, Path]], family: str, given: dict[str, Any], said: str
) -> None:
    def path(name: Any) -> str:
        return name if isinstance(name, str) else str(further[name[0]][name[1]])

    changes = {
        key: [path(name) for name in value] if isinstance(value, list) else path(value) for key, value in given.items()
    }
    with pytest.raises(InputError, match=said) as error:
        resolve(further[family], **changes)
    assert "\n" not in str(error.value)


def test_the_encoder_of_pictures_stays_where_texts_come_encoded(further: dict[str, dict[str, Path]]) -> None:
    files = further["wan21-i2v"]
    key = resolve(files, text_encoders=["none", str(files["text_of_pictures"])])
    loaded = loader.load(key)
    assert loaded.pipeline.text_encoder is None
    assert loaded.pipeline.tokenizer is None
    assert loaded.pipeline.image_encoder is not None
    assert loaded.pipeline.image_processor is not None


def test_a_quantization_that_is_not_read_is_refused_by_name(zimage: dict[str, Path], tmp_path: Path) -> None:
    whole = load_file(zimage["text"])
    layer = "model.layers.0.mlp.up_proj"
    for said, match in ((b'{"format": "asym_w4a8_int8"}', "comfy_quant 'asym_w4a8_int8'"), (b"{", "cannot be read")):
        mark = {f"{layer}.comfy_quant": torch.tensor(list(said), dtype=torch.uint8)}
        save_file({**whole, **mark}, tmp_path / "text.safetensors")
        with pytest.raises(ModelFileError, match=match) as error:
            resolve(zimage, text_encoders=[str(tmp_path / "text.safetensors")])
        assert "\n" not in str(error.value)
    fp8 = {f"{layer}.weight": whole[f"{layer}.weight"].to(torch.float8_e4m3fn)}
    mark = {f"{layer}.comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)}
    save_file({**whole, **fp8, **mark}, tmp_path / "text.safetensors")
    with pytest.raises(ModelFileError, match=rf"scale of '{layer}.weight' is missing"):
        resolve(zimage, text_encoders=[str(tmp_path / "text.safetensors")])


def test_layouts_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("comfy_kitchen")
    files, _ = write("zimage", build("zimage"), tmp_path, "nvfp4")
    whole = load_file(files["model"])
    first = next(key for key in whole if key.endswith(".comfy_quant")).removesuffix("comfy_quant")
    other = {first + "weight": whole[first + "weight"].view(torch.int8)}
    for changes, without, said in (
        ({}, first + "weight_scale_2", "the scale of .* is missing"),
        (other, "", "is I8 of shape .* said to be nvfp4"),
        ({first + "pre_quant_scale": torch.ones(32)}, "", "pre_quant_scale"),
        ({"blocks.0.x.qweight": torch.zeros(4, 4, dtype=torch.int8)}, "", "Nunchaku"),
    ):
        save_file({key: value for key, value in (whole | changes).items() if key != without}, files["model"])
        with pytest.raises(ModelFileError, match=said) as error:
            resolve(files)
        assert "\n" not in str(error.value)
    assert kind_of_part(files["model"]) == UNREADABLE, "it is offered, so that choosing it says why"
    save_file({**whole, first + "weight_scale": torch.zeros(3, 5, dtype=torch.float8_e4m3fn)}, files["model"])
    with pytest.raises(ModelFileError, match=r"scales of .* do not fit it") as unfit:
        loader.load(resolve(files))
    assert "\n" not in str(unfit.value)
    save_file(whole, files["model"])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "comfy_kitchen" else find(name))
    assert kind_of_part(files["model"]) == DIFFUSION_MODEL, "it is offered, so that choosing it says what to install"
    with pytest.raises(MissingDependencyError, match="pip install comfy-kitchen") as missing:
        resolve(files)
    assert "\n" not in str(missing.value)


def test_pictures_to_edit_are_prepared_as_published(tmp_path: Path) -> None:
    """What Qwen2.5-VL publishes for its encoder of pictures, where no folder beside the model says otherwise."""
    from fastdiffusers.pipelines.loading.parts.models import qwenimage

    tokenizer = build("qwenimage-edit").tokenizer
    family = next(family for family in qwenimage.FAMILIES if family.title == "Qwen-Image-Edit")
    assert family.more is not None
    pictures = family.more({"tokenizer": tokenizer}, tmp_path)["processor"].image_processor
    assert (pictures.patch_size, pictures.temporal_patch_size, pictures.merge_size) == (14, 2, 2)
    np.testing.assert_allclose(pictures.image_mean, [0.48145466, 0.4578275, 0.40821073])
    np.testing.assert_allclose(pictures.image_std, [0.26862954, 0.26130258, 0.27577711])
    assert (pictures.size["shortest_edge"], pictures.size["longest_edge"]) == (56 * 56, 12845056)


def test_the_tokenizer_in_the_file_of_umt5_gives_its_tokens(wan: dict[str, Path], tmp_path: Path) -> None:
    """ComfyUI's files of UMT5 hold a SentencePiece model, whose own library is the reference."""
    import sentencepiece

    from fastdiffusers.pipelines.loading.parts.encoders import UMT5_TOKENIZER
    from fastdiffusers.pipelines.loading.parts.read import read_tokenizer

    held = torch.tensor(list(sentencepiece_model()), dtype=torch.uint8)
    save_file({**load_file(wan["text"]), "spiece_model": held}, tmp_path / "text.safetensors")
    assert kind_of_part(tmp_path / "text.safetensors") == TEXT_ENCODER
    resolve(wan, text_encoders=[str(tmp_path / "text.safetensors")])
    nowhere = tmp_path / "model.safetensors"
    made = read_tokenizer("tokenizer", UMT5_TOKENIZER, nowhere, "", {"text_encoder": tmp_path / "text.safetensors"})
    reference = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(), add_eos=True)
    for text in ("a red fox", "The  fox, 12 birds!", "snow\u00e9 on ice", "", " lake "):
        padded = made(text, padding="max_length", max_length=64, truncation=True)
        tokens = reference.encode(text)
        assert padded.input_ids == tokens + [0] * (64 - len(tokens)), text
        assert sum(padded.attention_mask) == len(tokens)
    with pytest.raises(ModelFileError, match=r"neither .* nor in the file of the text encoder"):
        read_tokenizer("tokenizer", UMT5_TOKENIZER, nowhere, "", {"text_encoder": wan["text"]})
