"""FLUX.3, Qwen-Image-2.1 and MiniMax-H3 from the files that ComfyUI takes: the pipeline that a modular folder gives."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from modular_parts import BUILD, ORIGINAL, write_header, write_modular
from safetensors.torch import load_file, save_file
from test_parts_families import in_own_memory, tensors

from fastdiffusers import cli
from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.embeddings.given import Embeddings
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.parts import (
    DIFFUSION_MODEL,
    TEXT_ENCODER,
    UNREADABLE,
    VAE,
    choose_text_encoders,
    choose_vae,
    kind_of_part,
)
from fastdiffusers.pipelines.loading.parts.fit import empty_network
from fastdiffusers.pipelines.loading.parts.header import read_part
from fastdiffusers.pipelines.loading.parts.models import flux3, qwenimage21
from fastdiffusers.pipelines.loading.parts.plan import family_of_part
from fastdiffusers.pipelines.loading.saving.folder import save_folder
from fastdiffusers.pipelines.modular.index import MODULAR_INDEX
from fastdiffusers.pipelines.types import LoadKey, PipelineHandle, SampleRequest

PLAIN = OptimizationSettings(attention="sdpa", torch_compile="off")
REQUEST = SampleRequest("a fox", steps=2, width=64, height=64, seed=5)
WITH_ENCODER = ("flux3", "qwenimage21")


def resolve(files: dict[str, Path], **changes: Any) -> Any:
    given: dict[str, Any] = {"text_encoders": [str(files[name]) for name in ("text_encoder",) if name in files]}
    given |= {"vae": str(files.get("vae", "")), "dtype": "float32", "device": "cpu"} | changes
    return loader.resolve(str(given.pop("model", files["transformer"])), in_parts=True, **given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Path], Any]]:
    """Family -> its files and the pipeline that they are of."""
    found = {}
    for family, build in BUILD.items():
        pipeline = build()
        found[family] = write_modular(family, pipeline, tmp_path_factory.mktemp(family)), pipeline
    return found


@pytest.fixture(scope="module")
def folders(made: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> its modular folder."""
    found = {}
    for family, (_, pipeline) in made.items():
        found[family] = tmp_path_factory.mktemp("folders") / family
        pipeline.save_pretrained(str(found[family]), overwrite_modular_index=True)
    return found


def results_of(keys: Iterable[LoadKey], request: SampleRequest) -> list[Any]:
    """Of models whose weights lie alike in memory."""
    results = []
    for key in keys:
        with CACHE.use(key) as loaded:
            in_own_memory(loaded.pipeline)
            results.append(generate(PipelineHandle(key), request, PLAIN))
    CACHE.clear()
    return results


@pytest.mark.parametrize("family", BUILD)
def test_what_is_loaded_is_what_the_pipeline_holds(family: str, made: Any) -> None:
    files, expected = made[family]
    kinds = {"transformer": DIFFUSION_MODEL, "text_encoder": TEXT_ENCODER, "vae": VAE}
    assert {name: kind_of_part(path) for name, path in files.items()} == {name: kinds[name] for name in files}
    with CACHE.use(resolve(files)) as loaded:
        pipeline = loaded.pipeline
        assert type(pipeline) is type(expected)
        assert loaded.family.known
        for name in files:
            own, theirs = pipeline.components[name], expected.components[name]
            assert type(own) is type(theirs)
            ours, wanted = tensors(own), tensors(theirs)
            assert ours.keys() == wanted.keys()
            assert all(torch.equal(ours[key], value) for key, value in wanted.items()), name
        scheduler = pipeline.components["scheduler"]
        assert dict(scheduler.config) == dict(expected.components["scheduler"].config)
        if family == "minimax-h3":
            assert pipeline.audio_scheduler.config.shift == expected.audio_scheduler.config.shift
    CACHE.clear()


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_the_picture_is_that_of_the_folder(family: str, made: Any, folders: dict[str, Path]) -> None:
    keys = resolve(made[family][0]), loader.resolve(str(folders[family]), dtype="float32", device="cpu")
    results = results_of(keys, REQUEST)
    assert results[0].frames.std() > 0
    assert torch.equal(results[0].frames, results[1].frames)
    assert torch.equal(results[0].latent, results[1].latent)


def test_the_command_line_takes_it(made: Any, tmp_path: Path) -> None:
    files = made["flux3"][0]
    output = tmp_path / "fox.png"
    given = ["--diffusion-model", files["transformer"], "--text-encoder", files["text_encoder"], "--vae", files["vae"]]
    how = ["--prompt", "a fox", "--steps", "1", "--width", "64", "--height", "64", "--device", "cpu", "--quiet"]
    assert cli.main(["generate", *map(str, given), *how, "--output", str(output)]) == 0
    assert output.stat().st_size > 0
    CACHE.clear()


def test_minimax_h3_takes_encoded_texts_and_gives_a_latent(made: Any, folders: dict[str, Path]) -> None:
    tokens = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(3))
    request = SampleRequest("", steps=2, width=32, height=32, seed=5, decode=False, positive=Embeddings(tokens))
    parts = resolve(made["minimax-h3"][0])
    folder = loader.resolve(str(folders["minimax-h3"]), dtype="float32", device="cpu")
    results = results_of((parts, folder), request)
    assert torch.equal(results[0].latent, results[1].latent)
    assert results[0].audio is None
    assert "no sound: the model was loaded without its VAE for sound" in str(results[0].report)
    for changes, said in (
        ({"decode": True}, "the model was loaded without its VAE"),
        ({"positive": None, "prompt": "a fox"}, "the model was loaded without a text encoder"),
    ):
        with pytest.raises(InputError, match=said):
            generate(PipelineHandle(parts), replace(request, **changes), PLAIN)
    CACHE.clear()


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_what_is_needed_is_found(family: str, made: Any) -> None:
    files = made[family][0]
    at_hand = [path for each, _ in made.values() for name, path in each.items() if name != "transformer"]
    assert choose_text_encoders(files["transformer"], [], at_hand)[0].name == "text_encoder.safetensors"
    assert choose_vae(files["transformer"], at_hand) == files["vae"]
    minimax = made["minimax-h3"][0]["transformer"]
    assert choose_text_encoders(minimax, [], at_hand) == []
    assert choose_vae(minimax, at_hand) is None


def test_wrong_pairings_are_refused_by_name(made: Any) -> None:
    flux3, qwen, minimax = (made[family][0] for family in ("flux3", "qwenimage21", "minimax-h3"))
    for files, changes, said in (
        (flux3, {"vae": str(qwen["vae"])}, r"does not fit.*flux2-vae"),
        (flux3, {"vae": ""}, r"FLUX\.3 needs FLUX\.2's VAE, usually"),
        (flux3, {"text_encoders": []}, r"FLUX\.3 needs Qwen3-VL-4B, usually"),
        (flux3, {"text_encoders": [str(flux3["vae"])]}, r"no text encoder of FLUX\.3"),
        (qwen, {"vae": str(flux3["vae"])}, r"does not fit.*qwen_image_2\.1_vae"),
        (qwen, {"text_encoders": []}, r"Qwen-Image-2\.1 needs Qwen3-VL-8B, usually"),
        (minimax, {"vae": str(qwen["vae"])}, r"MiniMax-H3's VAE is not read in parts.*comfyui_vae"),
        (
            minimax,
            {"text_encoders": [str(qwen["text_encoder"])]},
            r"Qwen3-VL-32B is not read in parts.*CLIP Text Encode",
        ),
        (minimax, {"audio_vae": str(qwen["vae"])}, r"MiniMax-H3's VAE for sound is not read in parts"),
        (qwen, {"audio_vae": str(qwen["vae"])}, "makes no sound"),
    ):
        with pytest.raises(InputError, match=said) as error:
            resolve(files, **changes)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("family", "name", "more", "said"),
    [
        ("qwenimage21", "qwen_image_2.1_turbo", {}, r"Qwen-Image-2\.1 turbo's, whose noise levels"),
        ("minimax-h3", "pruned", {"adaln_t_table": torch.zeros(2, 2)}, "MiniMax-H3's.*adaln_t_table"),
    ],
)
def test_what_is_not_read_says_why(family: str, name: str, more: Any, said: str, made: Any, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.safetensors"
    save_file({**load_file(made[family][0]["transformer"]), **more}, path)
    assert kind_of_part(path) == UNREADABLE
    with pytest.raises(ModelFileError, match=said) as error:
        resolve({"transformer": path})
    assert "\n" not in str(error.value)


def test_a_distilled_flux3_is_told_by_its_tensors(made: Any, tmp_path: Path) -> None:
    from diffusers import Flux3Transformer2DModel
    from further_parts import changed
    from modular_parts import original_flux3

    files, pipeline = made["flux3"]
    distilled = Flux3Transformer2DModel.from_config(changed(pipeline.transformer.config, flow_map=True))
    path = tmp_path / "distilled.safetensors"
    save_file({key: value.contiguous() for key, value in original_flux3(distilled.state_dict()).items()}, path)
    distilled.save_config(tmp_path / "distilled" / "transformer")
    key = resolve(files, model=path, text_encoders=["none"], vae="none")
    assert loader.family_of_key(key).name == "flux3-distilled"
    loaded = loader.load(key).pipeline
    assert type(loaded).__name__ == "Flux3DistilledModularPipeline"
    assert torch.equal(
        loaded.transformer.target_timestep_embedder.linear_1.weight, distilled.target_timestep_embedder.linear_1.weight
    )


@pytest.mark.parametrize("component", ["flux3 transformer", "qwenimage21 transformer", "qwenimage21 vae"])
def test_the_published_sizes_are_recognised_and_built(component: str, tmp_path: Path) -> None:
    """diffusers' defaults are those of the published models."""
    import diffusers

    family, slot = component.split()
    names = {"flux3": "Flux3Transformer2DModel", "qwenimage21": "QwenImage21Transformer2DModel"}
    name = names[family] if slot == "transformer" else "AutoencoderKLQwenImage21"
    with torch.device("meta"):
        published = getattr(diffusers, name)()
    path = tmp_path / f"{slot}.safetensors"
    write_header(path, ORIGINAL[family][slot](published.state_dict()))
    assert kind_of_part(path) == (DIFFUSION_MODEL if slot == "transformer" else VAE)
    part = read_part(path, slot)
    titles = {"flux3": "FLUX.3", "qwenimage21": "Qwen-Image-2.1"}
    (parts_family,) = (each for each in (*flux3.FAMILIES, *qwenimage21.FAMILIES) if each.title == titles[family])
    if slot == "transformer":
        assert family_of_part(path) == parts_family
    built = empty_network(parts_family.components[slot], parts_family.components[slot].config(part.shapes))
    assert {key: value.shape for key, value in built.state_dict().items()} == {
        key: value.shape for key, value in published.state_dict().items()
    }
    assert sum(value.numel() for value in built.parameters()) > 1e8
    configs = [{k: v for k, v in each.config.items() if not k.startswith("_")} for each in (built, published)]
    assert json.dumps(configs[0], sort_keys=True) == json.dumps(configs[1], sort_keys=True)


@pytest.mark.parametrize("family", WITH_ENCODER)
def test_a_folder_of_them_gives_what_the_parts_give(family: str, made: Any, tmp_path: Path) -> None:
    """In bare diffusers too, and wherever it is moved."""
    import diffusers

    key = resolve(made[family][0])
    saved = save_folder(key, tmp_path / "out")
    assert set(saved.components) == {"transformer", "text_encoder", "vae"}
    index = json.loads((saved.folder / MODULAR_INDEX).read_text())
    places = {name: entry[2] for name, entry in index.items() if isinstance(entry, list) and len(entry) == 3}
    assert {place["pretrained_model_name_or_path"] for place in places.values()} <= {str(saved.folder), None}
    moved = saved.folder.rename(tmp_path / "moved")
    bare = diffusers.ModularPipeline.from_pretrained(str(moved))
    bare.load_components(dtype=torch.float32)
    parts = loader.load(key).pipeline
    assert type(bare) is type(parts)
    for name, component in parts.components.items():
        own = bare.components[name]
        if isinstance(component, torch.nn.Module):
            ours, theirs = tensors(component), tensors(own)
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[tensor], value) for tensor, value in theirs.items()), name
        else:
            assert type(own) is type(component), name
    folder = loader.resolve(str(moved), dtype="float32", device="cpu")
    assert loader.family_of_key(folder).name == loader.family_of_key(key).name
    results = results_of((key, folder), REQUEST)
    assert torch.equal(results[0].frames, results[1].frames)


def test_no_folder_is_written_without_all_of_a_model(made: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="chosen without its text_encoder"):
        save_folder(resolve(made["minimax-h3"][0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_an_embedded_one_names_itself(tmp_path: Path) -> None:
    saved = save_folder(loader.resolve("tiny:flux3", dtype="float32", device="cpu"), tmp_path / "out")
    index = json.loads((saved.folder / MODULAR_INDEX).read_text())
    assert index["transformer"][2]["pretrained_model_name_or_path"] == str(saved.folder)
    assert index["prompt_upsampler"][2]["pretrained_model_name_or_path"] is None
    assert loader.load(loader.resolve(str(saved.folder), device="cpu")).pipeline.transformer is not None


def test_what_qwen3_vl_is_sent_is_what_its_own_template_writes() -> None:
    """Of a text, and of parts of text and picture, as the pipelines send them."""
    import jinja2

    from fastdiffusers.pipelines.loading.parts.models.qwen3_vl import CHAT_TEMPLATE

    template = jinja2.Environment(autoescape=True).from_string(CHAT_TEMPLATE)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a fox"}]}
    system = {"role": "system", "content": [{"type": "text", "text": "Look."}]}
    assert template.render(messages=[system, user], add_generation_prompt=True) == (
        "<|im_start|>system\nLook.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>a fox<|im_end|>\n<|im_start|>assistant\n"
    )
    plain = [{"role": "user", "content": "a fox"}]
    assert template.render(messages=plain) == "<|im_start|>user\na fox<|im_end|>\n"
