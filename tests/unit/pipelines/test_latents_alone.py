"""A latent that is asked for alone decodes to the run's own frames; where nothing here decodes it, it is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import other_pipelines
import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.errors import InputError
from fastdiffusers.optimizations.settings import OptimizationSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.arguments import to_pil
from fastdiffusers.pipelines.cache import CACHE
from fastdiffusers.pipelines.conditions.kinds import MaskCondition, VideoCondition
from fastdiffusers.pipelines.generate import decode, encode, generate
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.requested.before_load import check_before_load
from fastdiffusers.pipelines.requests import ready
from fastdiffusers.pipelines.types import LoadKey, PipelineHandle, SampleRequest

PLAIN = OptimizationSettings.plain()
PICTURES = tuple(torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1)))
REQUEST = SampleRequest("a ship", steps=2, width=64, height=64, num_frames=9, seed=3, guidance=2.5)


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of Stable Diffusion 1.5, which is outside the table of families."""
    folder = tmp_path_factory.mktemp("sd15")
    other_pipelines.stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(CACHE, "use", use)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("prompts", [False, True])
def test_a_latent_that_nothing_decodes_is_refused_before_anything_loads(
    prompts: bool, unknown: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--model", str(unknown), "--quiet"]
    if prompts:
        (tmp_path / "p.jsonl").write_text('{"prompt": "a fox", "output": "u.safetensors"}\n')
        words += ["--prompts", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "out")]
    else:
        words += ["--prompt", "a fox", "--output", str(tmp_path / "u.safetensors")]
    assert cli.main(words) == cli.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "u.safetensors': how StableDiffusionPipeline scales its latents is not known here" in line
    assert line.endswith("Name a .png instead.")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("nothing_loads")
def test_decode_off_and_a_decode_are_refused_before_anything_loads(unknown: Path) -> None:
    handle = PipelineHandle(loader.resolve(str(unknown)))
    with pytest.raises(InputError, match=r"decode = 'off': how StableDiffusionPipeline.*Switch decode on"):
        generate(handle, SampleRequest("a fox", decode=False), PLAIN)
    with pytest.raises(InputError, match=r"latent = 'given': how StableDiffusionPipeline.*Let the sampler decode"):
        decode(handle, torch.zeros(1, 4, 8, 8), PLAIN)
    with pytest.raises(InputError, match=r"pixels = 'given': how StableDiffusionPipeline.*sampler's images"):
        encode(handle, torch.zeros(1, 64, 64, 3), PLAIN)


@pytest.mark.parametrize("decode", [True, False])
def test_a_model_in_parts_whose_latents_nothing_else_decodes_needs_its_own_vae(decode: bool) -> None:
    key = LoadKey(
        "chroma.safetensors", parts=(("text_encoder", "t5.safetensors"), ("transformer", "chroma.safetensors"))
    )
    request = ready(family_of("ChromaPipeline"), SampleRequest("a fox", decode=decode))
    with pytest.raises(InputError, match=r"vae = 'none': how ChromaPipeline.*the model's own VAE where it is loaded"):
        check_before_load(key, request)


@pytest.mark.parametrize(
    "changes", [{}, {"images": PICTURES[:1]}, {"images": PICTURES}, {"images": PICTURES, "batch": 2}]
)
def test_a_latent_of_vace_holds_the_clip_alone(changes: dict[str, object]) -> None:
    """Its reference pictures are frames of the latent during the run; diffusers drops them before it decodes."""
    handle, request = PipelineHandle(loader.resolve("tiny:wan21-vace")), replace(REQUEST, **changes)
    whole, alone = generate(handle, request, PLAIN), generate(handle, replace(request, decode=False), PLAIN)
    assert alone.frames is None
    assert alone.latent is not None
    assert alone.latent.shape == (request.batch, 16, 3, 8, 8)
    decoded, _ = decode(handle, alone.latent, PLAIN)
    assert decoded.shape == (request.batch, 9, 64, 64, 3)
    assert whole.frames is not None
    assert torch.equal(decoded, whole.frames)
    assert torch.equal(whole.latent, alone.latent)
    references = {"reference_images": [to_pil(image) for image in request.images]} if request.images else {}
    bare = tiny.build("wan21-vace")(
        "a ship",
        width=64,
        height=64,
        num_frames=9,
        num_inference_steps=2,
        guidance_scale=2.5,
        generator=torch.Generator().manual_seed(3),
        output_type="pt",
        **references,
    )[0]
    assert torch.allclose(decoded[0], bare[0].permute(0, 2, 3, 1).float(), atol=2e-5), "a batch is decoded together"


def test_previews_of_vace_are_of_the_clip_alone() -> None:
    from fastdiffusers.callbacks import Callbacks

    handle, seen = PipelineHandle(loader.resolve("tiny:wan21-vace")), []
    callbacks = Callbacks(lambda tick: seen.append(tick.preview_latent))
    generate(handle, replace(REQUEST, images=PICTURES, decode=False), PLAIN, callbacks)
    assert {tuple(latent.shape) for latent in seen if latent is not None} == {(16, 3, 8, 8)}


def test_vace_keeps_no_part_of_a_latent_beside_pictures() -> None:
    handle = PipelineHandle(loader.resolve("tiny:wan21-vace"))
    mask = MaskCondition(torch.ones(64, 64).tril(), of_latent=True)
    request = replace(REQUEST, latent=torch.zeros(1, 16, 3, 8, 8), conditions=(mask,))
    with pytest.raises(InputError, match=r"mask = 'given': .*no latent to keep a part of beside pictures"):
        generate(handle, replace(request, images=PICTURES), PLAIN)
    assert generate(handle, request, PLAIN).latent.shape == (1, 16, 3, 8, 8)


def test_a_clip_of_vace_decodes_from_its_latent_too() -> None:
    handle = PipelineHandle(loader.resolve("tiny:wan21-vace"))
    clip = torch.rand(9, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    request = replace(REQUEST, images=PICTURES, conditions=(VideoCondition(clip),))
    result = generate(handle, request, PLAIN)
    assert torch.equal(decode(handle, result.latent, PLAIN)[0], result.frames)
