"""Quantized models: SDNQ contained and loaded right, schemes checked before anything is read, copies written whole."""

from __future__ import annotations

import builtins
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastdiffusers import cli
from fastdiffusers.callbacks import Callbacks
from fastdiffusers.errors import InputError, MissingDependencyError, ModelFileError
from fastdiffusers.optimizations.quantization import layers, quantize, schemes, sdnq
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.loading.quantized_copy import quantize_folder

needs_sdnq = pytest.mark.skipif(importlib.util.find_spec("sdnq") is None, reason="sdnq is not installed")
needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
MINIMUM = 1024
ROUNDING = {"atol": 1e-4, "rtol": 0}
"""Between latents of the same weights at other addresses, mapped from a file or made in memory: some processors'
kernels sum in another order there. Quantizing itself moves these latents by 2e-3 (int8) and 3e-2 (uint4)."""


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make a package look as if it were not installed."""
    find_spec, import_ = importlib.util.find_spec, builtins.__import__

    def hide(package: str) -> None:
        def is_hidden(name: str) -> bool:
            return name.split(".")[0] == package

        def find(name: str, *args: Any) -> Any:
            return None if is_hidden(name) else find_spec(name, *args)

        def refuse(name: str, *args: Any, **kwargs: Any) -> ModuleType:
            if is_hidden(name):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return import_(name, *args, **kwargs)

        monkeypatch.setattr(importlib.util, "find_spec", find)
        monkeypatch.setattr(builtins, "__import__", refuse)

    return hide


def quantized_by_hand(pipeline: Any, weights_dtype: str, folder: Path) -> Path:
    """What SDNQ's own documentation does."""
    import sdnq

    for name in ("transformer", "text_encoder"):
        sdnq.sdnq_post_load_quant(
            getattr(pipeline, name),
            weights_dtype=weights_dtype,
            minimum_allowed_numel=MINIMUM,
            torch_dtype=torch.float32,
        )
    sdnq.save_sdnq_model(pipeline, str(folder), is_pipeline=True)
    return folder


# --- SDNQ folders -----------------------------------------------------------------------------------------------------


@needs_sdnq
@pytest.mark.parametrize("weights_dtype", ["int8", "uint4"])
def test_a_folder_with_a_quantized_text_encoder_gives_what_sdnq_gives(
    weights_dtype: str, tiny_pipeline: Callable, run: Callable, tmp_path: Path
) -> None:
    import sdnq  # noqa: F401 - by hand it has to be imported first
    from diffusers import DiffusionPipeline

    pipeline = tiny_pipeline("qwenimage")
    plain = run(pipeline)
    folder = quantized_by_hand(pipeline, weights_dtype, tmp_path / "model")
    expected = run(DiffusionPipeline.from_pretrained(folder))
    key = loader.resolve(str(folder), dtype="float32", device="cpu")
    loaded = loader.load(key)
    torch.testing.assert_close(run(loaded.pipeline), expected, **ROUNDING)
    assert not torch.equal(expected, plain)
    assert {"transformer", "text_encoder"} == set(loaded.facts["quantization"])
    assert weights_dtype in loaded.facts["quantization"]["text_encoder"]


@needs_sdnq
def test_it_loads_right_in_a_process_that_never_imported_sdnq(tiny_pipeline: Callable, tmp_path: Path) -> None:
    """An int8 text encoder loads without any complaint, and wrongly, when sdnq was not imported first."""
    folder = quantized_by_hand(tiny_pipeline("qwenimage"), "int8", tmp_path / "model")
    code = f"""
import sys, torch, torch._dynamo.config as config
from fastdiffusers.commands.libraries import declare_torchvision_ops
declare_torchvision_ops()
from fastdiffusers.optimizations.quantization.sdnq import sdnq_layers
from fastdiffusers.pipelines.loading import loader
names = [n for n in ("recompile_limit", "accumulated_recompile_limit", "suppress_errors") if hasattr(config, n)]
before = [getattr(config, name) for name in names]
key = loader.resolve({str(folder)!r}, dtype="float32", device="cpu")
assert "sdnq" not in sys.modules
pipeline = loader.load(key).pipeline
assert "sdnq" in sys.modules
assert [getattr(config, name) for name in names] == before, "dynamo's limits"
assert sum(1 for _ in sdnq_layers(pipeline.text_encoder)) > 0, "text encoder"
print("right")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert ran.stdout.strip().endswith("right"), ran.stderr[-2000:]


@needs_sdnq
def test_without_sdnq_one_clear_line(tiny_pipeline: Callable, tmp_path: Path, without: Callable) -> None:
    folder = quantized_by_hand(tiny_pipeline("qwenimage"), "int8", tmp_path / "model")
    without("sdnq")
    with pytest.raises(MissingDependencyError) as caught:
        loader.resolve(str(folder), device="cpu")
    text = str(caught.value)
    assert "\n" not in text
    assert "sdnq" in text
    assert "pip install sdnq" in text


def fail_while_loading(config: Any) -> None:
    with sdnq.import_sdnq_safely():
        config.recompile_limit = 5000
        raise ZeroDivisionError


@needs_sdnq
@pytest.mark.parametrize("supports_limits_per_function", [True, False])
def test_dynamos_limits_and_the_environment_are_as_before(
    supports_limits_per_function: bool, monkeypatch: pytest.MonkeyPatch, tiny_pipeline: Callable
) -> None:
    import torch._dynamo.config as config

    monkeypatch.setattr(sdnq, "_limits_are_per_function", lambda: supports_limits_per_function)
    environment = dict(os.environ)
    with config.patch(recompile_limit=11, accumulated_recompile_limit=77):
        with sdnq.import_sdnq_safely() as library:
            assert library.__name__ == "sdnq"
            assert config.recompile_limit == (11 if supports_limits_per_function else 8192)
            config.recompile_limit = 5000  # what the import does in an accelerated process
        assert (config.recompile_limit, config.accumulated_recompile_limit) == (11, 77)
        with pytest.raises(ZeroDivisionError):
            fail_while_loading(config)
        assert config.recompile_limit == 11
        pipeline = tiny_pipeline("flux")
        with sdnq.sdnq_limits(pipeline):
            assert config.recompile_limit == 11
        quantize.quantize_loaded(pipeline, "sdnq-int8", minimum_numel=MINIMUM)
        with sdnq.sdnq_limits(pipeline):
            assert config.recompile_limit == (11 if supports_limits_per_function else 8192)
        assert config.recompile_limit == 11
    assert dict(os.environ) == environment


@needs_sdnq
@pytest.mark.parametrize("weights_dtype", ["int8", "uint4"])
def test_quantized_matmul_is_switched_in_place_and_exactly_back(
    weights_dtype: str, tiny_pipeline: Callable, run: Callable
) -> None:
    pipeline = tiny_pipeline("qwenimage")
    quantize.quantize_loaded(pipeline, f"sdnq-{weights_dtype}", minimum_numel=MINIMUM)
    before = run(pipeline)
    on = sdnq.set_quantized_matmul(pipeline, "on")
    multiplied = run(pipeline)
    assert on is not None
    assert "layers" in on.applied
    assert 0 < (multiplied - before).abs().max() < 0.5
    for choice in ("auto", "on", "off", "auto"):
        record = sdnq.set_quantized_matmul(pipeline, choice)
        assert record is not None
        assert not record.failed
        assert torch.equal(run(pipeline), multiplied if choice == "on" else before)


def test_quantized_matmul_of_a_plain_model_is_refused_in_the_report(tiny_pipeline: Callable) -> None:
    pipeline = tiny_pipeline("flux")
    assert sdnq.set_quantized_matmul(pipeline, "auto") is None
    record = sdnq.set_quantized_matmul(pipeline, "on")
    assert record is not None
    assert record.failed
    assert "SDNQ" in record.reason


# --- quantize while loading -------------------------------------------------------------------------------------------


@needs_sdnq
@pytest.mark.parametrize("name", ["sdnq-int8", "sdnq-uint4"])
def test_quantizing_while_loading_equals_quantizing_afterwards(
    name: str, tiny_folder: Callable, tiny_pipeline: Callable, run: Callable
) -> None:
    from diffusers import DiffusionPipeline

    folder = tiny_folder("qwenimage")
    index = json.loads((folder / "model_index.json").read_text())
    config = quantize.pipeline_quantization_config(name, index, dtype=torch.float32, minimum_numel=MINIMUM)
    with sdnq.import_sdnq_safely():
        streamed = DiffusionPipeline.from_pretrained(folder, quantization_config=config)
    afterwards = tiny_pipeline("qwenimage")
    described = quantize.quantize_loaded(afterwards, name, minimum_numel=MINIMUM)
    assert described == layers.describe_quantization(streamed)
    assert set(described) == {"transformer", "text_encoder"}
    torch.testing.assert_close(run(streamed), run(afterwards), **ROUNDING)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("layerwise-fp8", torch.float32),
        pytest.param("torchao-int8", torch.bfloat16, marks=needs_torchao),
        pytest.param("torchao-fp8", torch.bfloat16, marks=needs_torchao),
    ],
)
def test_other_schemes_keep_the_picture(name: str, dtype: torch.dtype, run: Callable) -> None:
    from fastdiffusers.pipelines import tiny

    plain = run(tiny.build("flux", dtype=dtype)).float()
    pipeline = tiny.build("flux", dtype=dtype)
    described = quantize.quantize_loaded(pipeline, name, dtype=dtype)
    result = run(pipeline).float()
    assert "8" in described["transformer"]
    assert "vae" not in described
    assert 0 < (result - plain).abs().mean() < 0.2 * plain.abs().mean()


@needs_torchao
@pytest.mark.parametrize("name", ["torchao-int8", "torchao-fp8", "torchao-fp8-dynamic"])
def test_torchao_leaves_the_compilers_settings_alone(name: str) -> None:
    """It would have inductor try out every kernel, of every model in the process: minutes instead of seconds."""
    from torch import nn
    from torch._inductor import config as inductor

    settings, precision = inductor.get_config_copy(), torch.get_float32_matmul_precision()
    config = quantize._torchao_config(name)
    assert not config.set_inductor_config
    if name != "torchao-fp8-dynamic":  # it needs a card
        from torchao.quantization import quantize_

        model = nn.Sequential(nn.Linear(64, 64, dtype=torch.bfloat16))
        quantize_(model, config)
        assert type(model[0].weight).__module__.startswith("torchao")
    assert inductor.get_config_copy() == settings
    assert torch.get_float32_matmul_precision() == precision


def test_layerwise_fp8_leaves_a_quantized_model_alone(tiny_pipeline: Callable, run: Callable) -> None:
    """Casting the storage of SDNQ's weights would destroy them without a word."""
    pytest.importorskip("sdnq")
    pipeline = tiny_pipeline("flux")
    quantize.quantize_loaded(pipeline, "sdnq-int8", minimum_numel=MINIMUM)
    before = run(pipeline)
    quantize.quantize_loaded(pipeline, "layerwise-fp8")
    assert torch.equal(run(pipeline), before)


def test_an_unknown_scheme_is_refused_before_anything_is_read() -> None:
    with pytest.raises(InputError, match="quantization = 'int3'") as caught:
        schemes.check_quantization("int3")
    assert all(name in str(caught.value) for name in ("sdnq-int8", "none"))


@pytest.mark.parametrize("name", [name for name, scheme in schemes.SCHEMES.items() if scheme.package])
def test_a_missing_package_is_one_clear_line(name: str, without: Callable) -> None:
    scheme = schemes.SCHEMES[name]
    without(scheme.package)
    with pytest.raises(MissingDependencyError) as caught:
        schemes.check_quantization(name)
    assert scheme.install in str(caught.value)
    assert "\n" not in str(caught.value)


def test_some_schemes_need_a_device_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "_installed", lambda module: True)
    with pytest.raises(InputError, match="cpu has no fp8"):
        schemes.check_quantization("torchao-fp8-dynamic", "cpu")
    with pytest.raises(InputError, match="accelerator"):
        schemes.check_quantization("bnb-nf4", "cpu")
    for name in ("torchao-fp8-dynamic", "bnb-nf4"):
        schemes.check_quantization(name, "auto")


def test_bitsandbytes_only_quantizes_folders(tiny_pipeline: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemes, "_installed", lambda module: True)
    with pytest.raises(InputError, match="folder"):
        quantize.quantize_loaded(tiny_pipeline("flux"), "bnb-nf4", device="auto")


def test_what_is_quantized_and_what_is_not() -> None:
    index = {
        "_class_name": "X",
        "scheduler": ["diffusers", "S"],
        "transformer": ["diffusers", "T"],
        "transformer_2": [None, None],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"],
        "vae": ["diffusers", "AutoencoderKL"],
        "boundary_ratio": 0.9,
    }
    assert schemes.quantizable(index, "sdnq-int8") == {"transformer": "diffusers", "text_encoder_2": "transformers"}
    assert schemes.quantizable(index, "torchao-fp8-dynamic") == {"transformer": "diffusers"}


# --- quantized copies -------------------------------------------------------------------------------------------------


@needs_sdnq
@pytest.mark.parametrize("weights_dtype", ["int8", "uint4"])
def test_a_quantized_copy_is_what_quantizing_while_loading_gives(
    weights_dtype: str, tiny_folder: Callable, run: Callable, tmp_path: Path
) -> None:
    folder = tiny_folder("qwenimage")
    copy = quantize_folder(str(folder), weights_dtype, tmp_path / "copy", minimum_numel=MINIMUM, device="cpu")
    loaded = loader.load(loader.resolve(str(copy.folder), dtype="float32", device="cpu"))
    from fastdiffusers.pipelines import tiny

    expected = tiny.build("qwenimage")
    assert quantize.quantize_loaded(expected, f"sdnq-{weights_dtype}", minimum_numel=MINIMUM) == copy.components
    torch.testing.assert_close(run(loaded.pipeline), run(expected), **ROUNDING)
    assert copy.bytes_after < copy.bytes_before
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


@needs_sdnq
def test_a_copy_that_is_cancelled_or_fails_is_not_there(tiny_folder: Callable, tmp_path: Path) -> None:
    class Interrupt(Exception):
        pass

    ticks = []

    def cancel_at_the_third() -> None:
        ticks.append(1)
        if len(ticks) == 3:
            raise Interrupt

    with pytest.raises(Interrupt):
        quantize_folder(
            str(tiny_folder("flux")), "int8", tmp_path / "copy", callbacks=Callbacks(check_cancel=cancel_at_the_third)
        )
    assert list(tmp_path.iterdir()) == []


@needs_sdnq
def test_a_full_disk_is_said_before_and_while_writing(
    tiny_folder: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    import sdnq

    folder = str(tiny_folder("flux"))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sdnq, "save_sdnq_model", full)
        with pytest.raises(InputError, match="No space left"):
            quantize_folder(folder, "int8", tmp_path / "copy")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(InputError, match="GiB"):
        quantize_folder(folder, "int8", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


@needs_sdnq
def test_bad_input_for_a_copy(tiny_folder: Callable, tmp_path: Path) -> None:
    folder = str(tiny_folder("flux"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(InputError, match="weights_dtype = 'int99'"):
        quantize_folder(folder, "int99", tmp_path / "copy")
    with pytest.raises(InputError, match="not an empty folder"):
        quantize_folder(folder, "int8", tmp_path / "full")
    with pytest.raises(InputError, match="does not exist"):
        quantize_folder(folder, "int8", tmp_path / "no" / "copy")
    with pytest.raises(ModelFileError, match="no such folder"):
        quantize_folder(str(tmp_path / "nothing here"), "int8", tmp_path / "copy")
    copy = quantize_folder(folder, "int8", tmp_path / "copy", minimum_numel=MINIMUM)
    with pytest.raises(InputError, match=r"^model = .*quantized already.*the model that it was made from"):
        quantize_folder(str(copy.folder), "int8", tmp_path / "again")
    assert (tmp_path / "full" / "file").read_text() == "mine"


@needs_sdnq
def test_the_command_writes_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", "--model", "tiny:flux", "--weights-dtype", "uint4", "--output", str(tmp_path / "copy")]
    assert cli.main(arguments) == 0
    assert "uint4" in capsys.readouterr().out
    assert schemes.checkpoint_quantization(tmp_path / "copy", ["transformer"])["transformer"] == "sdnq"
    assert cli.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


@needs_sdnq
def test_quantized_matmul_through_the_front_door(tiny_pipeline: Callable, run: Callable) -> None:
    from fastdiffusers.optimizations.apply import active, apply, revert
    from fastdiffusers.optimizations.settings import OptimizationSettings

    pipeline = tiny_pipeline("qwenimage")
    quantize.quantize_loaded(pipeline, "sdnq-int8", minimum_numel=MINIMUM)
    plain = run(pipeline)
    results = {}
    for choice in ("on", "off", "on", "auto"):
        settings = OptimizationSettings.plain(quantized_matmul=choice)
        report = apply(pipeline, settings, device="cpu")
        with active(pipeline, settings, report):
            result = run(pipeline)
        assert torch.equal(results.setdefault(choice, result), result)
        assert report["quantized_matmul"].requested == choice
    assert not torch.equal(results["on"], plain)
    assert torch.equal(results["off"], plain)
    apply(pipeline, OptimizationSettings.plain(quantized_matmul="on"), device="cpu")
    revert(pipeline)
    assert torch.equal(run(pipeline), plain)
