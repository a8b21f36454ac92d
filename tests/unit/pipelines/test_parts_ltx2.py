"""LTX-2 and LTX-2.3 from the files that ComfyUI takes: what is loaded is what the diffusers folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ltx2_parts import ltx2, ltx23, write_ltx2
from safetensors.torch import load_file, save_file
from test_parts_families import in_own_memory, tensors

from fastdiffusers import cli
from fastdiffusers.commands.latent_file import read_latent
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
    choose_audio_vae,
    choose_text_encoders,
    choose_vae,
    kind_of_part,
)
from fastdiffusers.pipelines.loading.saving.folder import save_folder
from fastdiffusers.pipelines.types import PipelineHandle, SampleRequest

SIZE = {"width": 64, "height": 64, "num_frames": 9, "steps": 2, "seed": 1}
PLAIN = OptimizationSettings(attention="sdpa", torch_compile="off")
EXTRA = {"spatio_temporal_guidance_blocks": [1]}
"""The tiny models have two blocks, not 48."""
BUILD = {"ltx2": ltx2, "ltx23": ltx23}


def resolve(files: dict[str, Path], **changes: Any) -> Any:
    texts = [str(path) for name, path in files.items() if name.startswith("text")]
    given = {"text_encoders": texts, "dtype": "float32", "device": "cpu"}
    given |= {"vae": str(files.get("vae", "")), "audio_vae": str(files.get("audio", ""))} | changes
    return loader.resolve(str(given.pop("model", files["model"])), in_parts=True, **given)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, tuple[dict[str, Path], Path]]]:
    """Family -> layout -> its files and their folder."""
    return {
        family: {
            layout: write_ltx2(pipeline, tmp_path_factory.mktemp(f"{family}_{layout}"), layout)
            for layout in ("whole", "parts", "apart")
        }
        for family, pipeline in ((name, build()) for name, build in BUILD.items())
    }


def clip(pipeline: Any) -> tuple[np.ndarray, np.ndarray]:
    """A clip and its sound."""
    pipeline.set_progress_bar_config(disable=True)
    output = pipeline(
        prompt="a fox",
        width=64,
        height=64,
        num_frames=9,
        num_inference_steps=2,
        output_type="np",
        generator=torch.Generator().manual_seed(1),
        **EXTRA,
    )
    return output.frames, output.audio.float().numpy()


@pytest.mark.parametrize(("family", "layout"), [("ltx2", "apart"), ("ltx23", "whole")])
def test_what_is_loaded_is_what_the_folder_holds(family: str, layout: str, made: Any) -> None:
    from diffusers import DiffusionPipeline

    files, twin = made[family][layout]
    kinds = {"model": DIFFUSION_MODEL, "vae": VAE, "audio": VAE}
    assert {name: kind_of_part(path) for name, path in files.items()} == {
        name: kinds.get(name, TEXT_ENCODER) for name in files
    }
    key = resolve(files)
    with CACHE.use(key) as loaded:  # which checks the files once more
        pipeline = loaded.pipeline
    CACHE.clear()
    expected = DiffusionPipeline.from_pretrained(twin)
    assert type(pipeline) is type(expected)
    assert pipeline.components.keys() == expected.components.keys()
    for name, component in expected.components.items():
        if not isinstance(component, torch.nn.Module):
            continue
        own = pipeline.components[name]
        if name == "text_encoder":  # without what sees pictures
            component = component.model.language_model
        assert type(own) is type(component), name
        ours, theirs = tensors(own), tensors(component)
        assert ours.keys() == theirs.keys(), name
        assert all(torch.equal(ours[key], value) for key, value in theirs.items()), name
    picture, sound = clip(in_own_memory(pipeline))
    assert picture.std() > 0
    assert np.abs(sound).max() > 0
    reference = clip(in_own_memory(expected))
    assert np.array_equal(picture, reference[0])
    assert np.array_equal(sound, reference[1])


@pytest.mark.parametrize(("family", "layout"), [("ltx2", "apart"), ("ltx23", "whole")])
def test_what_is_needed_is_found_beside_it(family: str, layout: str, made: Any) -> None:
    files, model = made[family][layout][0], made[family][layout][0]["model"]
    others = [path for kind in BUILD if kind != family for path in made[kind]["parts"][0].values()]
    at_hand = [path for path in (*others, *files.values()) if path != made["ltx2"]["parts"][0]["model"]]
    texts = sorted(path.name for name, path in files.items() if name.startswith("text"))
    assert sorted(path.name for path in choose_text_encoders(model, [], at_hand)) == texts
    encoded = choose_text_encoders(model, [], at_hand, of_texts=False)
    assert encoded == ([files["text_connectors"]] if layout == "apart" else [])
    assert choose_vae(model, at_hand) == files.get("vae", model)
    assert choose_audio_vae(model, at_hand) == files.get("audio", model)


def test_encoded_texts_need_neither_text_encoder_nor_vae(made: Any) -> None:
    """The latent is that of the whole pipeline with the same texts, with and without what would decode it."""
    files, _ = made["ltx23"]["whole"]
    text = Embeddings(torch.randn(1, 5, 80, generator=torch.Generator().manual_seed(2)))
    request = SampleRequest("", **SIZE, positive=text, guidance=1.0, decode=False)
    absent = {"text_encoder", "vae", "audio_vae", "vocoder"}
    whole, bare = resolve(files), resolve(files, text_encoders=["none"], vae="none", audio_vae="none")
    assert absent <= dict(whole.parts).keys()
    assert not absent & dict(bare.parts).keys()
    expected, result = (generate(PipelineHandle(key), request, PLAIN) for key in (whole, bare))
    assert torch.equal(result.latent, expected.latent)
    assert result.audio is None
    assert "no sound: the model was loaded without its VAE for sound" in str(result.report)
    with CACHE.use(bare) as loaded:
        held = tensors(loaded.pipeline.connectors)
    CACHE.clear()
    assert {value.numel() for name, value in held.items() if "proj_in.weight" in name} == {0}, "it takes no memory"


def test_the_command_line_takes_it(made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The latent of its folder, from the files, with the sound and without."""
    files, twin = made["ltx2"]["parts"]
    texts = [word for name in ("text", "text_projection") for word in ("--text-encoder", str(files[name]))]
    parts = ["--diffusion-model", str(files["model"]), *texts, "--vae", str(files["vae"])]
    how = [
        "--prompt",
        "a fox",
        "--steps",
        "2",
        "--width",
        "64",
        "--height",
        "64",
        "--num-frames",
        "9",
        "--guidance",
        "1",
    ]
    how += ["--device", "cpu", "--dtype", "float32", "--quiet"]
    latents = []
    for model in (
        ["--model", str(twin)],
        [*parts, "--audio-vae", str(files["audio"])],
        [*parts, "--audio-vae", "none"],
    ):
        output = tmp_path / f"{len(latents)}.latent.safetensors"
        assert cli.main(["generate", *model, *how, "--output", str(output)]) == 0
        latents.append(read_latent(output)[0])
    CACHE.clear()
    for latent in latents[1:]:
        # Weights of two files lie otherwise in memory, where a processor may round otherwise.
        torch.testing.assert_close(latent, latents[0], rtol=0, atol=1e-4)
    capsys.readouterr()
    assert cli.main(["generate", *parts, *how, "--output", str(tmp_path / "no.latent.safetensors")]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "Add --audio-vae FILE, or none to make no sound" in line


def test_a_folder_is_written_of_it(made: Any, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    files, twin = made["ltx23"]["parts"]
    save_folder(resolve(files), tmp_path / "out")
    written, expected = (DiffusionPipeline.from_pretrained(place) for place in (tmp_path / "out", twin))
    for name in ("transformer", "connectors", "vae", "audio_vae", "vocoder"):
        ours, theirs = (tensors(pipeline.components[name]) for pipeline in (written, expected))
        assert all(torch.equal(ours[key], value) for key, value in theirs.items()), name
    ours, theirs = tensors(written.text_encoder), tensors(expected.text_encoder.model.language_model)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_wrong_pairings_are_refused_by_name(made: Any) -> None:
    whole, parts, later = made["ltx2"]["whole"][0], made["ltx2"]["parts"][0], made["ltx23"]["parts"][0]
    for files, changes, said in (
        (parts, {"vae": str(later["vae"])}, r"does not fit.*LTX2_video_vae"),
        (parts, {"vae": ""}, r"needs LTX-2's VAE, usually.*--vae FILE"),
        (parts, {"audio_vae": ""}, r"needs LTX-2's VAE for sound.*--audio-vae FILE, or none to make no sound"),
        (parts, {"audio_vae": str(later["audio"])}, r"does not fit.*LTX2_audio_vae"),
        (parts, {"audio_vae": str(parts["vae"])}, r"does not fit.*LTX2_audio_vae"),
        (parts, {"text_encoders": [str(parts["text"])]}, "needs LTX-2's text projection"),
        (parts, {"text_encoders": [str(parts["text_projection"])]}, "needs Gemma 3 12B, usually gemma_3_12B"),
        (whole, {"text_encoders": []}, "needs Gemma 3 12B"),
        (later, {"text_encoders": [str(later["text"]), str(parts["text_projection"])]}, "its text projection"),
        (made["ltx2"]["apart"][0], {"text_encoders": [str(parts["text"])]}, "needs LTX-2's connectors"),
        (
            made["ltx2"]["apart"][0],
            {"text_encoders": [str(parts["text"]), str(made["ltx23"]["apart"][0]["text_connectors"])]},
            "its connectors give|does not fit",
        ),
        (whole, {"second_expert": str(whole["model"])}, "one diffusion model"),
    ):
        with pytest.raises(InputError, match=said) as error:
            resolve(files, **changes)
        assert "\n" not in str(error.value)


def test_another_models_audio_vae_is_refused(made: Any) -> None:
    from original_families import build, write

    audio = made["ltx2"]["parts"][0]["audio"]
    place = audio.parent / "zimage"
    place.mkdir()
    files, _ = write("zimage", build("zimage"), place)
    with pytest.raises(InputError, match="makes no sound"):
        resolve({"model": files["model"], "text": files["text"], "vae": files["vae"]}, audio_vae=str(audio))


def test_a_distilled_file_has_its_schedule(made: Any, tmp_path: Path) -> None:
    """As the name says; the tensors are the same."""
    from fastdiffusers.pipelines.loading.parts.plan import family_of_part

    files = made["ltx2"]["whole"][0]
    distilled = tmp_path / "ltx-2-19b-distilled.safetensors"
    distilled.symlink_to(files["model"])
    plain, other = family_of_part(files["model"]), family_of_part(distilled)
    assert (plain.title, other.title) == ("LTX-2", "LTX-2 distilled")
    assert plain.scheduler[1]["use_dynamic_shifting"] is True
    assert (other.scheduler[1]["use_dynamic_shifting"], other.scheduler[1]["shift_terminal"]) == (False, None)


def gemma_sentencepiece() -> bytes:
    """A model of the form of Gemma's: pieces that merge, bytes for the rest, and pieces that are never divided."""
    import io

    import sentencepiece
    from sentencepiece_model import WORDS

    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS * 20),
        model_writer=proto,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        bos_piece="<bos>",
        eos_piece="<eos>",
        user_defined_symbols=["<mask>", "\n", "\n\n", "<start_of_turn>", "<end_of_turn>"],
        split_digits=True,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    return proto.getvalue()


def test_the_tokenizer_in_the_file_of_gemma_gives_its_tokens(made: Any, tmp_path: Path) -> None:
    """ComfyUI's files of Gemma hold a SentencePiece model, whose own library is the reference."""
    import sentencepiece

    from fastdiffusers.pipelines.loading.parts.models.ltx2.gemma import GEMMA_TOKENIZER, sentencepieces
    from fastdiffusers.pipelines.loading.parts.read import read_tokenizer

    model = gemma_sentencepiece()
    text = tmp_path / "text.safetensors"
    held = torch.tensor(list(model), dtype=torch.uint8)
    save_file({**load_file(made["ltx2"]["parts"][0]["text"]), "spiece_model": held}, text)
    assert kind_of_part(text) == TEXT_ENCODER
    own = read_tokenizer("tokenizer", GEMMA_TOKENIZER, tmp_path / "model.safetensors", "", {"text_encoder": text})
    reference = sentencepiece.SentencePieceProcessor(model_proto=model, add_bos=True)
    turn = "<start_of_turn>user\nfox<end_of_turn>"
    for words in ("a red fox", "The  fox, 12 birds!", "snow\u00e9 on ice\nsecond\n\nthird", "", " lake ", turn):
        padded = own(words, padding="max_length", max_length=64, truncation=True)
        tokens = reference.encode(words)
        assert padded.input_ids == [0] * (64 - len(tokens)) + tokens, words
        assert padded.attention_mask == [0] * (64 - len(tokens)) + [1] * len(tokens)
    for damaged in (model[:-3], b"\x0f"):
        with pytest.raises(ValueError, match="its tokenizer"):
            list(sentencepieces(damaged))


def test_ltx25_is_refused_by_name(made: Any, tmp_path: Path) -> None:
    state = load_file(made["ltx23"]["parts"][0]["model"])
    later = tmp_path / "later.safetensors"
    save_file({**state, "keyframes_abs_pos_embedding": torch.zeros(1, 64)}, later)
    assert kind_of_part(later) == UNREADABLE
    with pytest.raises(ModelFileError, match=r"it is LTX-2\.5's.*Gemma 4") as error:
        resolve({"model": later})
    assert "\n" not in str(error.value)
