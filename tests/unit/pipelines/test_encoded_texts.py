"""Encoded texts instead of prompts: the picture of the pipeline's own encoding, and what is refused before a load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import further_parts
import pytest
import torch
from original_families import build, write

from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.kinds import MaskCondition
from fastdiffusers.pipelines.embeddings.given import Embeddings
from fastdiffusers.pipelines.generate import decode, generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest, SampleResult

PLAIN = OptimizationSettings(attention="sdpa", torch_compile="off")
SMALL: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "seed": 3, "guidance": 3.0}
POSITIVE, NEGATIVE = "a fox", "blue ice, and birds"
TEXTS = {"positive": POSITIVE, "negative": NEGATIVE}
VIDEO = {"wan22-t2v": 5, "wan22-i2v": 5, "ltx2-t2v": 9, "ltx2-i2v": 9}


@torch.no_grad()
def encode(pipeline: Any, text: str) -> Embeddings:
    """What the pipeline itself makes of a text."""
    kind = type(pipeline).__name__
    if kind.startswith("Flux"):
        tokens, pooled, _ = pipeline.encode_prompt(text, text)
        return Embeddings(tokens, pooled)
    if kind in ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline"):
        prompts = [text] * (2 if "XL" in kind else 3)
        tokens, _, pooled, _ = pipeline.encode_prompt(*prompts, do_classifier_free_guidance=False)
        return Embeddings(tokens, pooled)
    if kind.startswith("QwenImage"):
        tokens, mask = pipeline.encode_prompt(text)
        return Embeddings(tokens, mask=mask)
    if kind.startswith("Krea2"):
        tokens, mask = pipeline.encode_prompt(text)
        return Embeddings(tokens.flatten(2), mask=mask)
    if kind == "ZImagePipeline":
        return Embeddings(pipeline.encode_prompt(text, do_classifier_free_guidance=False)[0][0][None])
    options = {"do_classifier_free_guidance": False, "max_sequence_length": 512}
    return Embeddings(pipeline.encode_prompt(text, **options)[0])


def handle(family: str) -> PipelineHandle:
    return PipelineHandle(loader.resolve(f"tiny:{family}", dtype="float32", device="cpu"))


def run(family: str, **changes: Any) -> SampleResult:
    given = {"prompt": "", **SMALL, "num_frames": VIDEO.get(family), "decode": False, **changes}
    if family in ("flux-kontext", "wan22-i2v", "ltx2-i2v"):
        given.setdefault("images", (torch.linspace(0, 1, 64 * 64 * 3).view(64, 64, 3),))
    return generate(handle(family), SampleRequest(**given), PLAIN)


@pytest.mark.parametrize(
    "family", ["flux", "flux-kontext", "sdxl", "sd3", "qwenimage", "zimage", "wan22-t2v", "wan22-i2v"]
)
def test_the_result_is_that_of_the_text(family: str) -> None:
    pipeline = tiny.build(family)
    own = run(family, prompt=POSITIVE, negative_prompt=NEGATIVE, batch=2)
    texts = {"positive": encode(pipeline, POSITIVE), "negative": encode(pipeline, NEGATIVE)}
    made = run(family, **texts, prompt="something else", batch=2)
    assert own.latent is not None
    assert made.latent is not None
    assert torch.equal(made.latent, own.latent)
    assert not torch.equal(made.latent, run(family, **texts | {"positive": encode(pipeline, "ice")}, batch=2).latent)
    assert "prompt ignored: positive is connected and goes before it." in made.report.notes
    if family.startswith("flux"):
        assert f"negative ignored: {family} has none." in made.report.notes


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, str]]:
    """Pipelines of classes outside the table, and their folders."""
    made = {}
    for family in ("chroma", "krea2", "flux-fill"):
        pipeline = further_parts.BUILDERS[family]()
        pipeline.save_pretrained(place := tmp_path_factory.mktemp(family))
        made[family] = (pipeline, str(place))
    return made


def run_folder(folder: str, **changes: Any) -> SampleResult:
    given = {"prompt": "", **SMALL, **changes}
    return generate(
        PipelineHandle(loader.resolve(folder, dtype="float32", device="cpu")), SampleRequest(**given), PLAIN
    )


def test_the_picture_of_krea_2_is_that_of_the_text(folders: dict[str, tuple[Any, str]]) -> None:
    pipeline, folder = folders["krea2"]
    own = run_folder(folder, prompt=POSITIVE, negative_prompt=NEGATIVE, batch=2).frames
    texts = {"positive": encode(pipeline, POSITIVE), "negative": encode(pipeline, NEGATIVE)}
    assert torch.equal(run_folder(folder, **texts, batch=2).frames, own)
    short = {name: replace(text, tokens=text.tokens[:, kept], mask=None) for name, text, kept in _unpadded(texts)}
    assert torch.allclose(run_folder(folder, **short, batch=2).frames, own, atol=1e-4)
    assert not torch.allclose(
        run_folder(folder, **texts | {"positive": encode(pipeline, "ice")}).frames, own, atol=1e-3
    )
    with pytest.raises(InputError, match="768 wide, and Krea2Pipeline takes 384: CLIP-L"):
        run_folder(folder, positive=Embeddings(torch.zeros(1, 77, 768)), guidance=0.0)


def test_a_size_that_krea_2_does_not_make_is_said(folders: dict[str, tuple[Any, str]]) -> None:
    """Its pipeline rounds up to a multiple of 16, in a log."""
    made = run_folder(folders["krea2"][1], prompt=POSITIVE, width=72, steps=1, guidance=0.0)
    assert made.frames.shape[2:4] == (64, 80)
    assert "size: 80x64 instead of 72x64, as Krea2Pipeline itself makes of it." in made.report.notes


def _unpadded(texts: dict[str, Embeddings]) -> list[tuple[str, Embeddings, torch.Tensor]]:
    return [(name, text, text.mask[0].bool()) for name, text in texts.items() if text.mask is not None]


def test_chroma_reads_a_text_as_it_is_encoded(folders: dict[str, tuple[Any, str]]) -> None:
    pipeline, folder = folders["chroma"]
    lengths = {name: len(pipeline.tokenizer(text).input_ids) for name, text in TEXTS.items()}
    states = {
        name: pipeline._get_t5_prompt_embeds(text, max_sequence_length=lengths[name])[0] for name, text in TEXTS.items()
    }
    made = run_folder(folder, **{name: Embeddings(tokens) for name, tokens in states.items()})
    assert "reads padding after its own prompts too" in " ".join(made.report.notes)
    pipeline.set_progress_bar_config(disable=True)
    masks = {name: torch.ones(1, length, dtype=torch.bool) for name, length in lengths.items()}
    expected = pipeline(
        prompt_embeds=states["positive"],
        prompt_attention_mask=masks["positive"],
        negative_prompt_embeds=states["negative"],
        negative_prompt_attention_mask=masks["negative"],
        num_inference_steps=2,
        guidance_scale=3.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(SMALL["seed"]),
        output_type="pt",
    ).images
    assert torch.equal(made.frames[:, 0], expected.permute(0, 2, 3, 1))


def test_chroma_does_not_read_what_a_mask_hides(folders: dict[str, tuple[Any, str]]) -> None:
    """In numbers, the mask of its own encoding lets its model read all padding."""
    pipeline, folder = folders["chroma"]
    text = encode_chroma(pipeline, POSITIVE)
    hidden = torch.cat([text.tokens, torch.randn(1, 5, text.tokens.shape[2])], dim=1)
    mask = torch.tensor([[1] * text.tokens.shape[1] + [0] * 5])
    shown = run_folder(folder, positive=text, guidance=1.0).frames
    assert torch.allclose(
        run_folder(folder, positive=Embeddings(hidden, mask=mask), guidance=1.0).frames, shown, atol=1e-4
    )
    assert not torch.allclose(run_folder(folder, positive=Embeddings(hidden), guidance=1.0).frames, shown, atol=1e-3)


def encode_chroma(pipeline: Any, text: str) -> Embeddings:
    length = len(pipeline.tokenizer(text).input_ids)
    return Embeddings(pipeline._get_t5_prompt_embeds(text, max_sequence_length=length)[0])


def test_the_picture_of_flux_fill_is_that_of_the_text(folders: dict[str, tuple[Any, str]]) -> None:
    pipeline, folder = folders["flux-fill"]
    picture = torch.linspace(0, 1, 64 * 64 * 3).view(64, 64, 3)
    given = {"images": (picture,), "conditions": (MaskCondition(torch.eye(64)[None]),)}
    own = run_folder(folder, prompt=POSITIVE, **given).frames
    assert torch.equal(run_folder(folder, positive=encode(pipeline, POSITIVE), **given).frames, own)
    assert not torch.equal(run_folder(folder, positive=encode(pipeline, "ice"), **given).frames, own)


@torch.no_grad()
def projected(pipeline: Any, text: str) -> Embeddings:
    """What ComfyUI's encoder gives of LTX-2: each layer as wide as it is, all of them projected to one."""
    states, mask = pipeline._get_gemma_prompt_embeds(text)
    states = states[:, -int(mask.sum()) :].unflatten(2, (pipeline.connectors.config.caption_channels, -1))
    low, high = states.amin((1, 2), keepdim=True), states.amax((1, 2), keepdim=True)
    states = 8 * (states - states.mean((1, 2), keepdim=True)) / (high - low + 1e-6)
    return Embeddings(pipeline.connectors.text_proj_in(states.flatten(2)))


@pytest.mark.parametrize(("family", "guidance"), [("ltx2-t2v", 3.0), ("ltx2-t2v", 1.0), ("ltx2-i2v", 3.0)])
def test_the_clip_of_ltx_2_is_that_of_the_text(family: str, guidance: float) -> None:
    pipeline = tiny.build(family)
    given = {"guidance": guidance, "decode": True}
    own = run(family, prompt=POSITIVE, negative_prompt=NEGATIVE, **given)
    texts = {"positive": projected(pipeline, POSITIVE), "negative": projected(pipeline, NEGATIVE)}
    made = run(family, **texts, **given)
    assert texts["positive"].tokens.shape[1] != texts["negative"].tokens.shape[1]
    torch.testing.assert_close(made.latent, own.latent, atol=2e-5, rtol=0)
    torch.testing.assert_close(made.frames, own.frames, atol=1e-4, rtol=0)
    torch.testing.assert_close(made.audio["waveform"], own.audio["waveform"], atol=1e-4, rtol=0)
    other = run(family, **texts | {"positive": projected(pipeline, "ice")}, **given)
    assert float((other.latent - own.latent).abs().max()) > 2e-4
    again = run(family, prompt=POSITIVE, negative_prompt=NEGATIVE, **given)
    assert torch.equal(again.latent, own.latent), "nothing of it is left in the model"


def test_a_longer_text_of_ltx_2_takes_as_many_registers_as_fit() -> None:
    pipeline = tiny.build("ltx2-t2v")
    text = projected(pipeline, POSITIVE)
    long = Embeddings(text.tokens.repeat(1, 1100 // text.tokens.shape[1] + 1, 1))
    lengths: list[int] = []
    with CACHE.use(handle("ltx2-t2v").key) as loaded:
        hook = loaded.pipeline.connectors.register_forward_pre_hook(
            lambda module, args: lengths.append(args[0].shape[1])
        )
    run("ltx2-t2v", positive=long, guidance=1.0)
    run("ltx2-t2v", positive=text, guidance=1.0)
    hook.remove()
    assert lengths == [-(-long.tokens.shape[1] // 128) * 128, 1024]


@torch.no_grad()
def projected_apart(pipeline: Any, text: str) -> Embeddings:
    """What ComfyUI's encoder gives of LTX-2.3: each token's layers normalized, and projected for picture and sound."""
    connectors = pipeline.connectors
    states, mask = pipeline._get_gemma_prompt_embeds(text)
    states = states[:, -int(mask.sum()) :].unflatten(2, (width := connectors.config.caption_channels, -1))
    states = (states * (states.square().mean(2, keepdim=True) + 1e-6).rsqrt()).flatten(2)
    made = [
        projection(states * (projection.out_features / width) ** 0.5)
        for projection in (connectors.video_text_proj_in, connectors.audio_text_proj_in)
    ]
    return Embeddings(torch.cat(made, dim=2))


def test_the_clip_of_ltx_2_3_is_that_of_the_text(tmp_path: Path) -> None:
    pipeline = further_parts.ltx23()
    pipeline.save_pretrained(folder := str(tmp_path / "model"))
    given = {"num_frames": 9, "decode": False}
    own = run_folder(folder, prompt=POSITIVE, negative_prompt=NEGATIVE, **given)
    texts = {"positive": projected_apart(pipeline, POSITIVE), "negative": projected_apart(pipeline, NEGATIVE)}
    made = run_folder(folder, **texts, **given)
    torch.testing.assert_close(made.latent, own.latent, atol=2e-5, rtol=0)
    torch.testing.assert_close(made.audio["waveform"], own.audio["waveform"], atol=1e-4, rtol=0)
    other = run_folder(folder, **texts | {"positive": projected_apart(pipeline, "ice")}, **given)
    assert float((other.latent - own.latent).abs().max()) > 2e-4
    with pytest.raises(InputError, match="32 wide, and ltx2-t2v takes 48"):
        run_folder(folder, positive=projected(tiny.build("ltx2-t2v"), "ice"), guidance=1.0)


def test_items_of_a_batch_take_the_items_of_the_text_in_turn() -> None:
    pipeline = tiny.build("flux")
    texts = [encode(pipeline, text) for text in ("a fox", "a bird", "snow")]
    pooled = torch.cat([text.pooled for text in texts if text.pooled is not None])
    several = Embeddings(torch.cat([text.tokens for text in texts]), pooled)
    made = run("flux", positive=several, batch=5).latent
    assert made is not None
    for item, text in enumerate((*texts, *texts[:2])):
        alone = run("flux", positive=text, seed=SMALL["seed"] + item).latent
        assert torch.allclose(made[item : item + 1], alone, atol=1e-5), item
    fewer = run("flux", positive=several, batch=2)
    assert torch.allclose(fewer.latent, made[:2], atol=1e-5)
    assert "of positive's 3 items, only the first 2 were used." in fewer.report.notes


def test_texts_of_two_lengths_are_joined_where_that_changes_nothing() -> None:
    """SDXL guides both in one call, and repeating the tokens leaves what each place of the picture sees of them."""
    pipeline = tiny.build("sdxl")
    text, other = encode(pipeline, POSITIVE), encode(pipeline, NEGATIVE)
    twice = Embeddings(torch.cat([other.tokens, other.tokens], dim=1), other.pooled)
    made = run("sdxl", positive=text, negative=twice).latent
    assert torch.allclose(made, run("sdxl", positive=text, negative=other).latent, atol=1e-4)
    with pytest.raises(InputError, match="texts of one length"):
        run("sd3", positive=(short := encode(tiny.build("sd3"), POSITIVE)), negative=replace_tokens(short, 20))


def replace_tokens(text: Embeddings, length: int) -> Embeddings:
    return replace(text, tokens=text.tokens[:, :length])


def test_the_sizes_of_sdxl_are_those_of_its_own_call() -> None:
    pipeline = tiny.build("sdxl")
    text = encode(pipeline, POSITIVE)
    sizes = {"original_size": (512, 768), "crop": (16, 0), "target_size": (1024, 512)}
    made = run("sdxl", positive=replace(text, **sizes), guidance=1.0).latent
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt_embeds=text.tokens,
        pooled_prompt_embeds=text.pooled,
        original_size=sizes["original_size"],
        crops_coords_top_left=sizes["crop"],
        target_size=sizes["target_size"],
        num_inference_steps=2,
        guidance_scale=1.0,
        width=64,
        height=64,
        generator=torch.Generator().manual_seed(SMALL["seed"]),
        output_type="latent",
    ).images
    assert torch.equal(made, expected.float() / pipeline.vae.config.scaling_factor)
    assert not torch.equal(made, run("sdxl", positive=text, guidance=1.0).latent)


def test_what_does_not_fit_is_refused_before_anything_loads() -> None:
    CACHE.clear()
    wide = {name: encode(tiny.build(name), POSITIVE) for name in ("flux", "sdxl", "wan22-t2v", "qwenimage")}
    clip_l = Embeddings(torch.zeros(1, 77, 768), torch.zeros(1, 768))
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("flux", {"positive": wide["sdxl"]}, r"64 wide, and flux takes 32.*T5-XXL and CLIP-L"),
        ("flux", {"positive": clip_l}, r"768 wide.*CLIP-L, as SD 1\.5 has"),
        ("flux", {"positive": wide["wan22-t2v"]}, "it has none, and flux takes one of 32"),
        ("wan22-t2v", {"positive": wide["flux"], "guidance": 1.0}, "it has one of 32, and wan-t2v takes none"),
        ("qwenimage", {"positive": wide["qwenimage"], "negative": clip_l}, "768 wide"),
        ("qwenimage", {"positive": wide["qwenimage"]}, "guidance = 3 needs one"),
        ("qwenimage", {"negative": wide["qwenimage"]}, "one call takes both"),
        ("flux", {"positive": Embeddings(torch.zeros(77, 32))}, r"\[batch, tokens, width\]"),
        ("flux2-klein", {"positive": wide["flux"], "guidance": 1.0}, r"32 wide, and flux2-klein takes (?!32)\d+"),
        ("ltx2-t2v", {"positive": wide["flux"], "guidance": 1.0}, "it has one of 32, and ltx2-t2v takes none"),
        ("ltx2-t2v", {"positive": clip_l, "guidance": 1.0}, "768 wide, and ltx2-t2v takes 32.*LTX-2's projection"),
        (
            "flux3",
            {"positive": wide["flux"]},
            r"flux3 encodes its own prompt: no ComfyUI up to 0\.33 has",
        ),
        ("minimax-h3", {"positive": wide["sdxl"], "num_frames": 124}, "64 wide, and minimax-h3 takes 32.*Qwen3-VL-32B"),
        ("flux", {"positive": replace(wide["flux"], ids=torch.zeros(1, 3))}, "T5's tokens for Anima's own network"),
    ]
    broken = r"^{} = 'NaN': it holds NaN or infinite values"
    for part in ("tokens", "pooled"):
        text = replace(wide["sdxl"], **{part: torch.full_like(getattr(wide["sdxl"], part), torch.nan)})
        cases.append(("sdxl", {"positive": text, "guidance": 1.0}, broken.format("positive")))
        cases.append(("sdxl", {"positive": wide["sdxl"], "negative": text, "guidance": 5.0}, broken.format("negative")))
    endless = replace(wide["qwenimage"], tokens=wide["qwenimage"].tokens / 0)
    cases.append(("qwenimage", {"positive": endless, "guidance": 1.0}, broken.format("positive")))
    for family, changes, said in cases:
        with pytest.raises(InputError, match=said) as error:
            run(family, **changes)
        assert "\n" not in str(error.value)
    assert CACHE.keys() == ()


def test_a_text_of_no_numbers_that_is_not_read_changes_nothing() -> None:
    """The negative one where guidance switches it off."""
    text = encode(tiny.build("sdxl"), POSITIVE)
    assert text.pooled is not None
    broken = replace(text, tokens=text.tokens * torch.nan, pooled=text.pooled * torch.nan)
    made = run("sdxl", positive=text, negative=broken, guidance=1.0)
    assert torch.equal(made.latent, run("sdxl", positive=text, guidance=1.0).latent)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, dict[str, Path]]]:
    made = {}
    for family in ("zimage", "wan22-t2v", "qwenimage"):
        pipeline = build(family)
        made[family] = (pipeline, write(family, pipeline, tmp_path_factory.mktemp(family))[0])
    return made


def resolve(files: dict[str, Path], **changes: Any) -> PipelineHandle:
    first, *second = (str(path) for name, path in files.items() if name.startswith("model"))
    given = {"text_encoders": ["none"], "vae": str(files["vae"]), "second_expert": second[0] if second else ""}
    key = loader.resolve(first, in_parts=True, dtype="float32", device="cpu", **given | changes)
    return PipelineHandle(key)


@pytest.mark.parametrize("family", ["zimage", "wan22-t2v", "qwenimage"])
def test_parts_without_text_encoders_and_vae_give_the_latent_of_the_whole(
    family: str, parts: dict[str, tuple[Any, dict[str, Path]]]
) -> None:
    pipeline, files = parts[family]
    texts = {"positive": encode(pipeline, POSITIVE), "negative": encode(pipeline, NEGATIVE)}
    request = SampleRequest("", **SMALL, num_frames=VIDEO.get(family), **texts)
    whole = generate(resolve(files, text_encoders=[str(files["text"])]), request, PLAIN)
    encoded = resolve(files)
    made = generate(encoded, request, PLAIN)
    assert torch.equal(made.frames, whole.frames)
    bare = resolve(files, vae="none")
    alone = generate(bare, replace(request, decode=False), PLAIN)
    assert torch.equal(alone.latent, whole.latent)
    assert alone.frames is None
    loaded = CACHE.peek(bare.key)
    assert loaded is not None
    models = [name for name, part in loaded.pipeline.components.items() if isinstance(part, torch.nn.Module)]
    assert set(models) <= {"transformer", "transformer_2"}
    assert alone.report.facts["left out"] == "text_encoder and vae"
    pictures, _ = decode(encoded, alone.latent, PLAIN)
    assert torch.equal(pictures, whole.frames)
    CACHE.clear()


def test_what_an_absent_component_would_have_to_do_is_refused(parts: dict[str, tuple[Any, dict[str, Path]]]) -> None:
    CACHE.clear()
    pipeline, files = parts["zimage"]
    text = encode(pipeline, POSITIVE)
    latent = torch.zeros(1, 16, 8, 8)
    bare = resolve(files, vae="none")
    for request, said in (
        (SampleRequest("a fox", decode=False), "loaded without a text encoder"),
        (SampleRequest("", positive=text), "loaded without its VAE.*Switch decode off"),
        (
            SampleRequest("", positive=text, decode=False, images=(torch.zeros(8, 8, 3),), strength=0.5, steps=4),
            "Choose a VAE in the loader",
        ),
    ):
        with pytest.raises(InputError, match=said):
            generate(bare, request, PLAIN)
    with pytest.raises(InputError, match="loaded without its VAE"):
        decode(bare, latent, PLAIN)
    with pytest.raises(InputError, match="they go together"):
        resolve(files, text_encoders=["none", str(files["text"])])
    assert CACHE.keys() == ()


def test_a_latent_starts_a_run_without_a_vae(parts: dict[str, tuple[Any, dict[str, Path]]]) -> None:
    pipeline, files = parts["zimage"]
    text = encode(pipeline, POSITIVE)
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    request = SampleRequest("", **SMALL | {"guidance": 0.0}, positive=text, latent=latent, strength=0.5, decode=False)
    made = generate(resolve(files, vae="none"), request, PLAIN).latent
    assert torch.equal(made, generate(resolve(files), request, PLAIN).latent)
    CACHE.clear()
