"""`doctor --plan`: the same sums as for a loaded pipeline, for models of every kind, and refusals in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import diffusers
import huggingface_hub.constants
import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.commands.libraries import prepare_libraries
from fastdiffusers.commands.plan import figures, skeleton, text
from fastdiffusers.comparison.run import with_picture
from fastdiffusers.memory import GIB, MemoryState
from fastdiffusers.optimizations import offload, vae_memory
from fastdiffusers.optimizations.apply import working_memory
from fastdiffusers.optimizations.components import modules, resident_bytes
from fastdiffusers.optimizations.settings import TilingSettings
from fastdiffusers.pipelines import tiny
from fastdiffusers.pipelines.generate import workload_of
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.types import SampleRequest
from fastdiffusers.scripts import plan_table

CARD = torch.device("cuda")
HOW = {"quant_method": "sdnq", "weights_dtype": "int8"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prepare_libraries(verbose=False)
    return tiny.save("flux", tmp_path_factory.mktemp("models") / "flux")


@pytest.mark.parametrize("family", ["flux", "sdxl", "wan22-i2v"])
@pytest.mark.parametrize("spare", [3 * GIB, 2 * GIB + 200_000, 1 * GIB])
def test_a_plan_says_what_a_loaded_pipeline_would_be_told(family: str, spare: int) -> None:
    """Against the functions that decide at run time, asked of the pipeline with its weights."""
    found = figures.plan(skeleton.model_of(f"tiny:{family}"), spare)
    pipeline = tiny.build(family, dtype=torch.bfloat16)
    fit = found.fits[0]
    assert fit.weights == {name: resident_bytes([part], CARD)[1] for name, part in modules(pipeline).items()}
    working = working_memory(pipeline, found.workload)
    assert found.working == working
    assert (fit.mode, fit.why) == offload.decide(pipeline, "auto", CARD, MemoryState(spare, spare), working)
    assert found.decode == vae_memory.estimate(pipeline.vae, found.workload)
    left = spare - (sum(fit.weights.values()) if fit.mode == "gpu" else 0)
    record = vae_memory.use(pipeline, TilingSettings(), found.workload, MemoryState(left, spare))[0]
    assert (fit.tiling, fit.tiling_why) == (record.applied, record.reason)


@pytest.mark.parametrize("name", tiny.PIPELINE_CLASSES)
def test_every_embedded_pipeline_is_planned_as_generate_makes_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if not hasattr(diffusers, tiny.PIPELINE_CLASSES[name]):
        pytest.skip("this diffusers does not have it")
    loaded = loader.load(loader.resolve(f"tiny:{name}", dtype="bfloat16", device="cpu"))
    assert cli.main(["doctor", "--plan", f"tiny:{name}", "--vram", "24", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    made = workload_of(loaded, with_picture(SampleRequest(""), loaded.family))
    assert planned["work"] == {"width": made.width, "height": made.height, "frames": made.frames}
    (fit, *_) = planned["fits"]
    assert fit["weights"] == {n: resident_bytes([part], CARD)[1] for n, part in modules(loaded.pipeline).items()}
    assert fit["mode"] == "gpu"


def test_a_folder_is_planned_as_the_pipeline_that_it_holds(saved: Path) -> None:
    folder, embedded = (skeleton.model_of(name) for name in (str(saved), "tiny:flux"))
    assert all(
        part.device.type == "meta" for module in modules(folder.skeleton).values() for part in module.parameters()
    )
    weights = [{fit.stored: dict(fit.weights) for fit in figures.plan(one, GIB).fits} for one in (folder, embedded)]
    assert weights[0] == weights[1]
    for name, size in weights[0]["bfloat16"].items():
        assert weights[0]["4 bits"][name] <= weights[0]["8 bits"][name] <= size
    assert (
        weights[0]["4 bits"]["transformer"]
        < weights[0]["8 bits"]["transformer"]
        < weights[0]["bfloat16"]["transformer"]
    )


def test_quantized_weights_count_as_they_are_stored(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    folder.mkdir()
    for entry in saved.iterdir():
        (folder / entry.name).symlink_to(entry)
    (folder / "transformer").unlink()
    (folder / "transformer").mkdir()
    config = json.loads((saved / "transformer" / "config.json").read_text(encoding="utf-8"))
    (folder / "transformer" / "config.json").write_text(json.dumps({**config, "quantization_config": HOW}), "utf-8")
    weights = next((saved / "transformer").glob("*.safetensors"))
    (folder / "transformer" / weights.name).symlink_to(weights)
    plan = figures.plan(skeleton.model_of(str(folder)), GIB)
    assert {fit.weights["transformer"] for fit in plan.fits} == {weights.stat().st_size}
    assert [fit.stored for fit in plan.fits] == ["as stored", "8 bits", "4 bits"]
    lines = text.as_text(plan).splitlines()
    assert lines[2].split() == ["weights", "as", "stored", "8", "bits", "4", "bits"]
    (said,) = (line for line in lines if "bfloat16" in line)
    assert said.startswith("  as stored: transformer sdnq int8, the rest bfloat16; what is quantized counts as")
    assert text.as_dict(plan)["schemes"]["as stored"] == ["none"]
    assert text.as_dict(plan)["quantized"] == {"transformer": "sdnq int8"}


def test_a_model_in_the_cache_of_the_hub_is_planned_without_a_network(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "snapshots").mkdir()
    (place / "refs" / "main").write_text("abc", encoding="utf-8")
    (place / "snapshots" / "abc").symlink_to(saved)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = skeleton.model_of("owner/name")
    assert found.name == "owner/name"
    assert found.family.name == "flux"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--plan", "no/such-model", "--vram", "24"], "not in the Hub's cache"),
        (["--plan", "nonsense", "--vram", "24"], "there is no such folder and no such architecture"),
        (["--plan", "tiny:nonsense", "--vram", "24"], "there is no embedded pipeline of that name"),
        (["--plan", "flux"], "the card is not named"),
        (["--plan", "flux", "--vram", "0"], "more than 0"),
        (["--plan", "flux", "--vram", "nan"], "more than 0"),
        (["--plan", "flux", "--vram", "24 MB"], "more than 0"),
        (["--plan", "flux", "--vram", "1e400"], "at most"),
        (["--plan", "flux", "--vram", "24", "--launch"], "nothing to do with a plan"),
        (["--vram", "24"], "Name the model"),
        (["--plan", __file__, "--vram", "24"], "single file"),
        (["--plan", str(Path(__file__).parent), "--vram", "24"], "model_index.json"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert cli.main(["doctor", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_a_configuration_that_is_not_the_class_s_own_is_one_line(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    for entry in saved.iterdir():
        (folder / entry.name).symlink_to(entry)
    (folder / "transformer").unlink()
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text('{"num_layers": "many"}', encoding="utf-8")
    with pytest.raises(skeleton.InputError, match=r"transformer cannot be built from its config\.json") as told:
        skeleton.model_of(str(folder))
    assert "\n" not in str(told.value)


def test_it_is_printed_for_a_person_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--plan", "tiny:flux", "--vram", "24"]) == 0
    shown = capsys.readouterr().out
    found = figures.plan(skeleton.model_of("tiny:flux"), 24 * GIB)
    assert shown.strip() == text.as_text(found).strip()
    assert "memory_mode: gpu: everything fits" in shown
    assert "--parallel: each card holds all of this" in shown
    assert cli.main(["doctor", "--plan", "tiny:flux", "--vram", "24", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["fits"][0]["weights"] == dict(found.fits[0].weights)
    assert data["fits"][0]["in_short"] == "gpu, compile"


def test_the_readme_has_what_the_command_computes() -> None:
    """The published sizes, on cards of 8 to 80 GiB: `python . scripts.plan_table` writes the table."""
    prepare_libraries(verbose=False)
    readme = (plan_table.PACK / "README.md").read_text(encoding="utf-8")
    assert plan_table.within(readme) == plan_table.table()


def test_the_templates_name_the_sizes_that_are_computed() -> None:
    """Weights in bfloat16, in GB, as the notes of the example workflows have them."""
    prepare_libraries(verbose=False)
    named = {"FLUX.1": "flux", "Wan2.2": "wan-i2v"}
    found = set()
    for file in sorted((plan_table.PACK / "example_workflows").glob("*.json")):
        text = file.read_text(encoding="utf-8")
        for model, said in re.findall(
            r"`[\w-]+/(FLUX\.1|Wan2\.2)[\w.-]*` \(about (\d+) GB of weights in bfloat16", text
        ):
            fit = figures.plan(skeleton.model_of(named[model]), GIB).fits[0]
            assert int(said) == round(sum(fit.weights.values()) / 1e9), file.name
            found.add(model)
    assert found == set(named)
