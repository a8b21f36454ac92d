"""Embedded pipelines with trained weights: as diffusers reads the same folder, strictly, and never half of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.tiny import trained
from fastdiffusers.pipelines.tiny.tokenizers import SPACE, clip_tokenizer, t5_tokenizer
from fastdiffusers.scripts.train_tiny import scenes
from fastdiffusers.vae.embedded import TRAINED_FILE

PROMPTS = ["a lighthouse at dusk, calm sea", "", "Lighthouse zoo 7!", "sea " * 90, "caf\u00e9 \u6d77"]
WORDS = ("lighthouse", "dusk", "calm", "sea")
STEPS_OF_VIDEO = 2500


def clip_with_words() -> Any:
    plain = clip_tokenizer().get_vocab()
    tokens = [token for token, _ in sorted(plain.items(), key=lambda item: item[1])][:-2]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
            tokens.append(pieces[0])
    names = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return clip_tokenizer({name: index for index, name in enumerate(names)}, list(dict.fromkeys(merges)))


def t5_with_words() -> Any:
    plain = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (SPACE, -2.0), *((chr(c), -3.0) for c in range(33, 127))]
    return t5_tokenizer([*plain, *((SPACE + word, -1.0) for word in WORDS)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as training leaves it: float16, tokenizers with whole words, no guidance input."""
    import diffusers

    pipeline: Any = tiny.build("flux-random", seed=5, dtype=torch.float16)
    config = {**pipeline.transformer.config, "guidance_embeds": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline.transformer = diffusers.FluxTransformer2DModel.from_config(config).half()
        for name, words in (("text_encoder", clip_with_words()), ("text_encoder_2", t5_with_words())):
            encoder = getattr(pipeline, name)
            encoder.resize_token_embeddings(len(words))
            setattr(pipeline, name.replace("text_encoder", "tokenizer"), words)
    pipeline.text_encoder.config.eos_token_id = len(pipeline.tokenizer) - 1
    folder = tmp_path_factory.mktemp("trained") / "flux"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy in the place of the pack's own, to change."""
    shutil.copytree(saved, tmp_path / "flux")
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    trained.digest.cache_clear()
    loader.family_of_key.cache_clear()
    yield tmp_path / "flux"
    trained.digest.cache_clear()
    loader.family_of_key.cache_clear()


def test_it_is_the_pipeline_that_diffusers_reads(folder: Path) -> None:
    from diffusers import FluxPipeline

    built: Any = tiny.build("flux")
    reference = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    for name in ("transformer", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = getattr(built, name).state_dict(), getattr(reference, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
        assert not getattr(built, name).training
    for name in ("tokenizer", "tokenizer_2"):
        for prompt in PROMPTS:
            assert getattr(built, name)(prompt).input_ids == getattr(reference, name)(prompt).input_ids, (name, prompt)
    assert len(built.tokenizer("lighthouse sea").input_ids) == 4
    assert dict(built.scheduler.config) == dict(reference.scheduler.config)
    call: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    reference.set_progress_bar_config(disable=True)
    pictures = [
        each(PROMPTS[0], generator=torch.Generator().manual_seed(1), **call).images for each in (built, reference)
    ]
    assert torch.equal(*pictures)


def test_the_random_one_stays_and_the_two_are_told_apart(folder: Path) -> None:
    assert tiny.build("flux-random").transformer.config.guidance_embeds
    one, other = loader.resolve("tiny:flux", device="cpu"), loader.resolve("tiny:flux-random", device="cpu")
    assert one.identity.startswith("trained ")
    assert other.identity == "seed 0"
    before = one.identity
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text() + " ")
    trained.digest.cache_clear()
    assert loader.resolve("tiny:flux", device="cpu").identity != before


def test_recommendations_are_those_it_was_trained_for(folder: Path) -> None:
    key = loader.resolve("tiny:flux", device="cpu", dtype="float32")
    for family in (loader.family_of_key(key), loader.load(key).family):
        assert (family.name, family.width, family.height, family.steps) == ("flux", 192, 192, 8)
        assert family.guidance_argument == ""


def test_without_trained_weights_it_is_the_random_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "FOLDER", tmp_path)
    ours, random = (tiny.build(name).transformer.state_dict() for name in ("flux", "flux-random"))
    assert all(torch.equal(ours[key], value) for key, value in random.items())


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("vae", lambda file: file.unlink()),
        ("text_encoder", lambda file: rewrite(file, lambda tensors: tensors.pop(next(iter(tensors))))),
        ("transformer", lambda file: rewrite(file, lambda tensors: tensors.update(more=torch.zeros(1)))),
        ("vae", lambda file: rewrite(file, lambda tensors: tensors.update({"encoder.conv_in.bias": torch.zeros(1)}))),
        ("text_encoder_2", lambda file: (file.parent / "config.json").unlink()),
    ],
    ids=["no weights", "a tensor less", "a tensor more", "another shape", "no configuration"],
)
def test_half_of_it_is_refused(folder: Path, part: str, change: Any) -> None:
    change(next((folder / part).glob("*.safetensors")))
    with pytest.raises(ModelFileError, match="Install the pack again") as caught:
        tiny.build("flux")
    assert part in str(caught.value)


def rewrite(file: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


SKIES = {
    "a blue boat at night, calm sea": "night",
    "a white house on the hills at noon, clear sky": "day",
    "red trees on the hills, a bright day": "day",
    "midnight, sand dunes, empty landscape": "night",
    "a red lighthouse at dusk, clear sky": "dusk",
}


@pytest.mark.usefixtures("trained_weights")
def test_pictures_follow_their_prompts() -> None:
    pipeline: Any = tiny.build("flux")
    pictures = pipeline(
        list(SKIES),
        height=192,
        width=192,
        num_inference_steps=8,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(SKIES))],
        output_type="pt",
    ).images
    assert scenes.classify(pictures * 2 - 1) == list(SKIES.values())


@pytest.mark.usefixtures("trained_weights")
def test_a_thing_has_the_colour_that_its_prompt_names() -> None:
    """Told by which paint there is more of than in pictures of the same house in other colours."""
    pipeline: Any = tiny.build("flux")
    pictures = pipeline(
        [f"a {colour} house on the hills by day, clear sky" for colour in scenes.COLOURS],
        height=192,
        width=192,
        num_inference_steps=8,
        generator=[torch.Generator().manual_seed(1) for _ in scenes.COLOURS],
        output_type="pt",
    ).images
    distance = (pictures[:, None] - torch.tensor(scenes.PAINTS)[None, :, :, None, None]).norm(dim=2)
    share = (distance < 0.35).flatten(2).float().mean(2)
    named = (share - share.median(0).values).argmax(1)
    assert (named == torch.arange(len(scenes.COLOURS))).sum() >= 4, named


def test_the_weights_and_their_training_are_here_and_small(trained_weights: Path) -> None:
    of_video = TRAINED_FILE.parent
    files = [path for folder in (trained_weights, of_video) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8 * 10**6
    for folder, stage, steps in (
        (trained_weights, "vae", 2500),
        (trained_weights, "flux", 3000),
        (of_video, "video", STEPS_OF_VIDEO),
    ):
        assert "Seed 0" in (folder / "README.md").read_text(encoding="utf-8")
        lines = (folder / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        assert rows[0]["step"] == 1
        assert steps - 5 < rows[-1]["step"] <= steps
        assert rows[-1]["loss"] < rows[0]["loss"] / 2
