"""Encoded texts for modular pipelines: what their blocks for the text give, given instead of a prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from modular_twins import ROUNDING, bare, save
from this_year import ernie, save_model

from fastdiffusers.errors import InputError, ModelFileError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.embeddings.given import Embeddings
from fastdiffusers.pipelines.embeddings.hooks import handed_over
from fastdiffusers.pipelines.embeddings.table import ENCODINGS, call_arguments
from fastdiffusers.pipelines.families import Family
from fastdiffusers.pipelines.generate import generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.modular.blocks import TEXT, blocks_of, one_by_one, text_components
from fastdiffusers.pipelines.modular.run import fresh_parts
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requests import check_request
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest, SampleResult

Folder = Callable[[str], Path]
PLAIN = OptimizationSettings(attention="sdpa", torch_compile="off")
POSITIVE, NEGATIVE = "a fox", "blue ice, and birds"
TEXTS = {"prompt": POSITIVE, "negative_prompt": NEGATIVE}
REQUEST = SampleRequest("", steps=2, width=64, height=64, seed=5, guidance=3.0, decode=False)
PICTURE = torch.rand(64, 64, 3, generator=torch.Generator().manual_seed(1))
TWINS = ("flux", "flux2-klein", "sdxl", "sd3", "qwenimage-edit", "zimage", "wan22-t2v")
ALONE = ("krea2", "anima", "ltx2", "ernie", "helios", "ideogram4")
"""MiniMax-H3 is tried with ComfyUI's own encoder, in tests/comfyui."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, modular_folder: Folder) -> Folder:
    """Folder of a model by name: the twins of embedded ones, and those that are modular alone."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = modular_folder(name) if name in TWINS else _save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return folder


def _save(name: str, place: Path) -> Path:
    import diffusers

    if name == "ernie":
        return save(diffusers.ErnieImageModularPipeline(), ernie(), place)
    if name == "ideogram4":
        return save(diffusers.Ideogram4ModularPipeline(), _ideogram4(), place)
    if name == "helios":
        return save(diffusers.HeliosModularPipeline(), _helios(), place)
    if name != "ltx2":
        return save_model(name, place)

    classical: Any = tiny.build("ltx2-t2v")
    return save(diffusers.LTX2ModularPipeline(), classical.components, place)


def _ideogram4() -> dict[str, Any]:
    """Ideogram 4, whose guidance has a model of its own: all of the 36 layers of its text encoder."""
    from diffusers import Ideogram4Transformer2DModel

    from fastdiffusers.pipelines.tiny.components import WIDTH, flow_euler, flux2_vae, qwen3_vl_encoder
    from fastdiffusers.pipelines.tiny.tokenizers import qwen_tokenizer

    torch.manual_seed(7)
    sizes = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"adaln_dim": 16, "llm_features_dim": 13 * WIDTH, "mrope_section": (4, 2, 2)}
    models = {name: Ideogram4Transformer2DModel(**sizes) for name in ("transformer", "unconditional_transformer")}
    encoder = qwen3_vl_encoder(layers=36, whole=False)
    return {
        **models,
        "text_encoder": encoder,
        "tokenizer": qwen_tokenizer(),
        "vae": flux2_vae(),
        "scheduler": flow_euler(),
    }


def _helios() -> dict[str, Any]:
    """Helios around the text encoder and the VAE of Wan."""
    from diffusers import HeliosScheduler, HeliosTransformer3DModel

    whole: Any = tiny.build("wan21-t2v")
    torch.manual_seed(6)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "rope_dim": (4, 4, 4)}
    transformer = HeliosTransformer3DModel(**sizes, text_dim=whole.text_encoder.config.d_model)
    kept = {name: getattr(whole, name) for name in ("text_encoder", "tokenizer", "vae")}
    scheduler = HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True)
    return {**kept, "transformer": transformer, "scheduler": scheduler}


def request_for(family: Family, name: str, **changes: Any) -> SampleRequest:
    # A latent alone is made only where something here decodes it.
    frames = {"wan22-t2v": 5, "ltx2": 9, "helios": 9}.get(name)
    request = replace(REQUEST, **changes, num_frames=frames, decode=not family.known)
    return replace(request, images=(PICTURE,)) if family.images == "required" else request


def run(folder: Path, request: SampleRequest) -> SampleResult:
    key = loader.resolve(str(folder), dtype="float32", device="cpu")
    return generate(PipelineHandle(key), request, PLAIN)


@torch.no_grad()
def encoded(folder: Path, **inputs: Any) -> dict[str, Embeddings]:
    """What the blocks for the text give, as ComfyUI's encoders do: of each text its own, without padding."""
    from diffusers.modular_pipelines import PipelineState

    with CACHE.use(loader.resolve(str(folder), dtype="float32", device="cpu")) as loaded:
        pipeline: Any = loaded.pipeline
        state = PipelineState()
        for item in blocks_of(pipeline).inputs:
            if item.name is not None:
                state.set(item.name, inputs.get(item.name, item.default))
        with fresh_parts(pipeline, loaded.family, REQUEST):
            for name, block in one_by_one([(TEXT, blocks_of(pipeline).sub_blocks[TEXT])]):
                if name != "connectors":
                    block(pipeline, state)
        made = {"positive": _embeddings(pipeline, state, "")}
        if any(state.get(f"negative_{name}prompt_embeds") is not None for name in ("", "qwen_")):
            made["negative"] = _embeddings(pipeline, state, "negative_")
        return made


def _embeddings(pipeline: Any, state: Any, side: str) -> Embeddings:
    def of(name: str) -> Any:
        return state.get(f"{side}{name}")

    if of("qwen_prompt_embeds") is not None:
        return Embeddings(of("qwen_prompt_embeds"), ids=of("t5_input_ids"))
    if of("text_features") is not None:
        return Embeddings(of("text_features")[:, -of("text_lengths")[0] :])
    tokens, mask = of("prompt_embeds"), of("prompt_embeds_mask")
    tokens = tokens[0][None] if isinstance(tokens, list) else tokens
    if type(pipeline).__name__.startswith("LTX2"):
        connectors, shown = pipeline.connectors, of("prompt_attention_mask")[0].bool()
        states = tokens[:, shown].unflatten(2, (connectors.config.caption_channels, -1))
        low, high = states.amin((1, 2), keepdim=True), states.amax((1, 2), keepdim=True)
        states = 8 * (states - states.mean((1, 2), keepdim=True)) / (high - low + 1e-6)
        return Embeddings(connectors.text_proj_in(states.flatten(2)))
    tokens = tokens.flatten(2) if tokens.ndim == 4 else tokens
    return Embeddings(tokens, of("pooled_prompt_embeds"), mask, tags=state.get("text_token_tags"))


@pytest.mark.parametrize("name", [*TWINS, *ALONE])
def test_the_result_is_that_of_the_text(name: str, folders: Folder) -> None:
    folder = folders(name)
    family = loader.family_of_key(loader.resolve(str(folder)))
    request = request_for(family, name)
    batch = 2 if name in ("krea2", "anima", "zimage") else 1
    own = run(folder, replace(request, **TEXTS, batch=batch))
    image = {} if not request.images else {"image": _picture(family)}
    texts = encoded(folder, **TEXTS, **image)
    made = run(folder, replace(request, **texts, batch=batch))
    torch.testing.assert_close(made.latent, own.latent, atol=ROUNDING, rtol=0)
    if "negative" in texts:
        swapped = {"positive": texts["negative"], "negative": texts["positive"]}
        changed = run(folder, replace(request, **swapped, batch=1)).latent
        assert float((changed - own.latent[:1]).abs().max()) > ROUNDING


def test_ernie_image_takes_them_in_its_classical_form(tmp_path: Path) -> None:
    import diffusers

    pipeline = diffusers.ErnieImagePipeline(**ernie())
    pipeline.save_pretrained(tmp_path)
    with torch.no_grad():
        tokens = [pipeline.encode_prompt([text], torch.device("cpu"), 1)[0] for text in (POSITIVE, NEGATIVE)]
    request = replace(REQUEST, width=64, height=64)
    own = run(tmp_path, replace(request, **TEXTS, decode=True)).frames
    positive, negative = (Embeddings(each[None]) for each in tokens)
    made = run(tmp_path, replace(request, positive=positive, negative=negative, decode=True)).frames
    torch.testing.assert_close(made, own, atol=ROUNDING, rtol=0)
    swapped = run(tmp_path, replace(request, positive=negative, negative=positive, decode=True)).frames
    assert float((swapped - own).abs().max()) > ROUNDING


def _picture(family: Family) -> Any:
    from fastdiffusers.pipelines.arguments import to_pil

    return [to_pil(PICTURE)] if family.max_images > 1 else to_pil(PICTURE)


def test_a_folder_without_text_encoders_takes_encoded_texts_alone(folders: Folder, tmp_path: Path) -> None:
    whole = folders("zimage")
    bare_folder = tmp_path / "bare"
    bare_folder.mkdir()
    index = json.loads((whole / "modular_model_index.json").read_text())
    absent = text_components(blocks_of(bare(whole)))
    assert absent == {"text_encoder", "tokenizer"}
    for name in absent:
        index[name][2]["pretrained_model_name_or_path"] = None
    for part in whole.iterdir():
        if part.is_dir() and part.name not in absent:
            (bare_folder / part.name).symlink_to(part)
    (bare_folder / "modular_model_index.json").write_text(json.dumps(index))
    request = request_for(family_of("ZImageModularPipeline"), "zimage")
    texts = encoded(whole, **TEXTS)
    own = run(whole, replace(request, **texts)).latent
    assert torch.equal(run(bare_folder, replace(request, **texts)).latent, own)
    loaded = CACHE.peek(loader.resolve(str(bare_folder), dtype="float32", device="cpu"))
    assert loaded is not None
    assert loaded.pipeline.text_encoder is None
    with pytest.raises(InputError, match="loaded without a text encoder"):
        run(bare_folder, replace(request, prompt=POSITIVE))
    index["text_encoder"][2]["pretrained_model_name_or_path"] = str(whole)
    (bare_folder / "modular_model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelFileError, match="gives no place for tokenizer"):
        run(bare_folder, replace(request, **texts))


def test_wan_without_guidance_takes_one_text(folders: Folder) -> None:
    """Its blocks ask for a negative text's embeddings, and then read none."""
    request = replace(request_for(family_of("Wan22ModularPipeline"), "wan22-t2v"), guidance=1.0)
    texts = encoded(folders("wan22-t2v"), **TEXTS)
    made = run(folders("wan22-t2v"), replace(request, positive=texts["positive"])).latent
    own = run(folders("wan22-t2v"), replace(request, prompt=POSITIVE)).latent
    torch.testing.assert_close(made, own, atol=ROUNDING, rtol=0)


def test_each_state_of_animas_network_counts_what_its_token_does(folders: Folder) -> None:
    """As ComfyUI multiplies them: `out * t5xxl_weights`."""
    pipeline = bare(folders("anima"))
    texts = encoded(folders("anima"), **TEXTS)
    weighed = {
        side: replace(text, weights=torch.linspace(0.5, 1.5, text.ids.shape[1])[None]) for side, text in texts.items()
    }
    family = family_of("AnimaModularPipeline")
    calls = [
        {"source_hidden_states": text.tokens, "target_input_ids": text.ids}
        for text in (weighed["positive"], weighed["negative"], weighed["positive"])
    ]
    with torch.no_grad():
        plain = [pipeline.text_conditioner(**call) for call in calls]
        with handed_over(pipeline, family, replace(REQUEST, **weighed)):
            made = [pipeline.text_conditioner(**call) for call in calls]
        with handed_over(pipeline, family, replace(REQUEST, **weighed, guidance=1.0)):
            alone = [pipeline.text_conditioner(**calls[0]) for _ in range(2)]
        assert torch.equal(pipeline.text_conditioner(**calls[0]), plain[0])
    for side, before, after in zip(("positive", "negative", "positive"), plain, made, strict=True):
        count = weighed[side].ids.shape[1]
        assert torch.equal(after[:, :count], before[:, :count] * weighed[side].weights[..., None])
        assert torch.equal(after[:, count:], before[:, count:])
    assert torch.equal(alone[1], made[0])


def test_what_a_modular_model_does_not_take_is_said() -> None:
    text = Embeddings(torch.zeros(1, 8, 32))
    anima, minimax = family_of("AnimaModularPipeline"), family_of("MiniMaxH3ModularPipeline")
    with pytest.raises(InputError, match=r"reads the text in T5's tokens too, and it holds none.*Qwen3-0\.6B"):
        check_request(anima, SampleRequest("", positive=text, guidance=1.0))
    for name in ("Flux3", "Flux3Distilled", "QwenImage21", "QwenImage21Turbo"):
        with pytest.raises(InputError, match=r"no ComfyUI up to 0\.33 has its text encoder"):
            check_request(family_of(f"{name}ModularPipeline"), SampleRequest("", positive=text))
    with pytest.raises(InputError, match="which embeddings HunyuanVideo15ModularPipeline takes is not known here"):
        check_request(family_of("HunyuanVideo15ModularPipeline"), SampleRequest("", positive=text))
    shown = SampleRequest("", positive=text, images=(PICTURE,))
    assert [note for note in check_request(minimax, shown) if "says nothing of the pictures" in note]
    tagged = replace(text, tags=torch.tensor([0] * 3 + [1] * 5))
    assert not [note for note in check_request(minimax, replace(shown, positive=tagged)) if "pictures" in note]
    encoding = ENCODINGS["minimax-h3"]
    made = call_arguments(encoding, {}, tagged, None, 1, (32, 32), torch.device("cpu"), torch.float32)
    assert made["text_token_tags"].tolist() == [0] * 3 + [1] * 5
