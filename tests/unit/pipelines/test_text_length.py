"""Prompts that are longer than a text encoder reads: the part that diffusers itself says it cuts, and more."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from other_pipelines import build

from fastdiffusers.pipelines import sampling, tiny
from fastdiffusers.pipelines.recognize import family_of, small
from fastdiffusers.pipelines.text_length import Reading, cut_notes, watched_texts
from fastdiffusers.pipelines.tiny.components import qwen_processor
from fastdiffusers.pipelines.tiny.tokenizers import qwen_tokenizer
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey, SampleRequest

LONG = "a red fox " * 6 + "jumps over the lazy dog, seen from far above at dawn"
"""Of 82 letters and more: the tiny CLIP tokenizer has one token a letter, and reads 75 of them."""
BARE_WARNING = re.compile(r"truncated because .*? tokens: (?:\[['\"])?(.*?)(?:['\"]\])?$")


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What diffusers itself says while a pipeline runs."""
    heard: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, listener = logging.getLogger("diffusers"), Listener()
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.WARNING)
    yield heard
    logger.removeHandler(listener)
    logger.setLevel(level)


def notes_of(pipeline: Any, request: SampleRequest) -> list[str]:
    family = small(family_of(pipeline))
    held = LoadedPipeline(LoadKey("test"), pipeline, family, torch.device("cpu"), torch.float32)
    small_request = replace(request, steps=2, width=64, height=64, decode=False, num_frames=5 if family.video else None)
    return sampling.run(held, small_request).report.notes


@pytest.mark.parametrize("name", ["flux", "sdxl", "sd3"])
def test_the_part_that_is_cut_is_the_one_that_diffusers_warns_of(name: str, warnings: list[str]) -> None:
    notes = notes_of(tiny.build(name), SampleRequest(LONG))
    said = {found.group(1).strip() for line in warnings if (found := BARE_WARNING.search(line))}
    assert len(said) == 1, warnings
    clip = [note for note in notes if "text_encoder reads 77 tokens" in note]
    assert len(clip) == 1
    assert repr(said.pop()) in clip[0]
    assert ("text_encoder_2 reads all of it" in clip[0]) == (name == "flux")
    assert ("text_encoder_3 reads all of it" in clip[0]) == (name == "sd3")
    assert any("text_encoder_2 reads 77" in note for note in notes) == (name != "flux")


def test_outside_the_table_too(warnings: list[str]) -> None:
    """Of a negative prompt diffusers says nothing here, and cuts it all the same."""
    notes = notes_of(build("stable_diffusion"), SampleRequest(LONG, negative_prompt=LONG.upper()))
    said = next(found.group(1).strip() for line in warnings if (found := BARE_WARNING.search(line)))
    assert [note for note in notes if "tokens" in note] == [
        f"{name}: text_encoder reads 77 tokens, not the end: {said!r}." for name in ("prompt", "negative_prompt")
    ]


@pytest.mark.parametrize("name", ["flux", "sdxl", "sd3", "qwenimage", "zimage", "flux2-klein", "wan22-t2v"])
def test_a_prompt_that_is_read_to_its_end_is_not_spoken_of(name: str) -> None:
    notes = notes_of(tiny.build(name), SampleRequest("a red fox", negative_prompt="a dog"))
    assert not any("tokens" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("flux", "text_encoder_2"),
        ("sd3", "text_encoder_3"),
        ("qwenimage", "text_encoder"),
        ("zimage", "text_encoder"),
        ("flux2-klein", "text_encoder"),
        ("wan22-t2v", "text_encoder"),
    ],
)
def test_max_sequence_length_is_the_limit_of_the_long_encoders(name: str, encoder: str) -> None:
    """What the encoder gets with the whole prompt is what it gets without the part that is said to be cut."""
    pipeline = tiny.build(name)
    limit = {"zimage": 72, "flux2-klein": 72, "qwenimage": 180}.get(name, 48)  # the template is in it
    notes = notes_of(pipeline, SampleRequest(LONG, max_sequence_length=limit))
    note = next(note for note in notes if note.startswith(f"prompt: {encoder} reads"))
    cut = note.split("not the end: ")[1].split("'")[1]
    assert LONG.endswith(cut)
    assert cut
    seen = [_embeds(pipeline, text, limit) for text in (LONG, LONG.removesuffix(cut) + "x" * len(cut), LONG[:5])]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def _embeds(pipeline: Any, text: str, limit: int) -> torch.Tensor:
    """What the pipeline makes of a text, by its own `encode_prompt`."""
    extra = {"prompt_2": text} if "Flux" in type(pipeline).__name__ and hasattr(pipeline, "text_encoder_2") else {}
    if type(pipeline).__name__ == "StableDiffusion3Pipeline":
        extra = {"prompt_2": "a", "prompt_3": text}
        text = "a"
    if extra.get("prompt_2") == text:
        text = "a"
    made = pipeline.encode_prompt(text, max_sequence_length=limit, **extra)
    made = made[0]
    return made[0] if isinstance(made, list) else made


def test_a_run_leaves_the_tokenizers_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny.build("flux")
    before = [type(pipeline.tokenizer), type(pipeline.tokenizer_2)]
    notes_of(pipeline, SampleRequest(LONG))
    assert [type(pipeline.tokenizer), type(pipeline.tokenizer_2)] == before

    def stop(*args: Any, **options: Any) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(pipeline, "encode_prompt", stop)
    with pytest.raises(RuntimeError, match="stop"):
        notes_of(pipeline, SampleRequest(LONG))
    assert [type(pipeline.tokenizer), type(pipeline.tokenizer_2)] == before


def test_a_processor_that_is_called_a_tokenizer_is_called_as_before() -> None:
    """Kandinsky 5 and FLUX.2 have one there; its first argument is pictures."""
    processor = qwen_processor(qwen_tokenizer())
    pipeline = SimpleNamespace(components={"tokenizer": processor})
    call = {"text": [LONG], "images": None, "truncation": True, "max_length": 24, "return_tensors": "pt"}
    expected = processor(**call)["input_ids"]
    with watched_texts(pipeline) as seen:
        assert torch.equal(processor(**call)["input_ids"], expected)
    assert [(reading.tokenizer, reading.limit) for reading in seen if reading.cut] == [("tokenizer", 24)]
    assert LONG.endswith(seen[0].cut)


class Breaking:
    """A tokenizer that gives what no note can be made of."""

    def __call__(self, text: Any = None, **options: Any) -> dict[str, Any]:
        return {"input_ids": None}

    def decode(self, tokens: Any, **options: Any) -> str:
        raise ValueError("no such token")


def test_what_cannot_be_said_of_a_prompt_never_costs_the_picture() -> None:
    tokenizer = Breaking()
    pipeline = SimpleNamespace(components={"tokenizer": tokenizer})
    with watched_texts(pipeline) as seen:
        assert tokenizer(LONG, truncation=True) == {"input_ids": None}
    assert seen == []
    told = [Reading("a tokenizer that is gone", LONG, 24, "dawn")]
    assert cut_notes(_sliced_pipeline({"image": 1}), told, SampleRequest(LONG, max_sequence_length=8)) == []


@pytest.mark.parametrize("start", [0, 4, {"image": 4, "multiple_images": 4}])
def test_what_is_used_of_a_text_begins_behind_the_template(start: Any) -> None:
    """JoyImage has a number of tokens to leave out for each of its templates."""
    pipeline = _sliced_pipeline(start)
    whole = len(pipeline.components["tokenizer"](LONG)["input_ids"])
    left_out = start if isinstance(start, int) else 4
    told = [Reading("tokenizer", LONG, 0, "")]
    enough = SampleRequest(LONG, max_sequence_length=whole - left_out)
    assert cut_notes(pipeline, told, enough) == []
    (note,) = cut_notes(pipeline, told, replace(enough, max_sequence_length=whole - left_out - 3))
    assert "not the end" in note


def _sliced_pipeline(start: Any) -> Any:
    class Sliced:
        def __init__(self) -> None:
            self.prompt_template_encode_start_idx = start
            self.components = {"tokenizer": qwen_tokenizer()}

        def encode_prompt(self, embeds: Any, max_sequence_length: int) -> Any:
            return embeds[:, :max_sequence_length]

        def __call__(self, max_sequence_length: int = 512) -> None: ...

    return Sliced()
