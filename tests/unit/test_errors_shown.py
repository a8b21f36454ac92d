"""The errors as others show, send and remake them."""

from __future__ import annotations

import pickle
import traceback
from pathlib import PurePosixPath, PureWindowsPath

import pytest
import torch

from fastdiffusers.errors import FastDiffusersError, InputError, MissingDependencyError, ModelFileError
from fastdiffusers.pipelines.requested.absent import check_absent, no_encoder
from fastdiffusers.pipelines.types import LoadKey, SampleRequest

ERRORS = (
    FastDiffusersError("some text"),
    InputError("scheduler", "Euler", "it is unknown", "use EulerDiscreteScheduler"),
    ModelFileError("model", "some-folder", "it is half-downloaded"),
    MissingDependencyError("sdnq", "quantization"),
    MissingDependencyError("sdnq", "quantization", "pip install sdnq==0.2.8"),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_is_shown_as_its_class_and_its_text(error: FastDiffusersError) -> None:
    """By Python, and by the rule of ComfyUI's `execution.full_type_name`."""
    assert type(error).__module__ == "builtins"
    assert "".join(traceback.format_exception_only(error)).strip() == f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_travels_to_another_process(error: FastDiffusersError) -> None:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)


def test_in_short_the_cure_comes_first() -> None:
    error = InputError("width", 72, "the model takes multiples of 16.", "use 64 or 80")
    assert error.in_short() == "width = 72: Use 64 or 80. Reason: the model takes multiples of 16."
    assert InputError("width", 72, "it is odd").in_short() == "width = 72: it is odd."
    path = "/models/" + "long-" * 30 + "name"
    short = ModelFileError("model", path, "there is no such file", "choose another").in_short()
    assert short.startswith("model = '/models/lon...")
    assert "name': Choose another. Reason: there is no such file." in short
    assert short.index("Choose") < 60
    assert short.endswith(f"The value is {path!r}.")
    assert MissingDependencyError("sdnq", "it").in_short() == str(MissingDependencyError("sdnq", "it"))


def test_an_error_class_of_another_module_travels_too() -> None:
    from fastdiffusers.vae.engine import HalfPrecisionOverflowError

    again = pickle.loads(pickle.dumps(HalfPrecisionOverflowError("out of range")))  # noqa: S301 - made here
    assert type(again) is HalfPrecisionOverflowError
    assert str(again) == "out of range"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (PurePosixPath("some/picture.png"), "'some/picture.png'"),
        (PureWindowsPath("C:/some/picture.png"), r"'C:\\some\\picture.png'"),
        ([PurePosixPath("a.png")], "'a.png'"),
        (["a.safetensors", "b.safetensors"], "'a.safetensors, b.safetensors'"),
        ("text", "'text'"),
        (24.5, "24.5"),
        ([], "[]"),
        ((3, 4), "(3, 4)"),
    ],
)
def test_a_value_is_shown_as_it_was_typed(value: object, shown: str) -> None:
    error = InputError("output", value, "it is there already", "choose another name")
    assert str(error) == f"output = {shown}: it is there already. Choose another name."
    assert error.in_short().startswith(f"output = {shown}: Choose another name.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - made here
    assert error.value == value


def test_what_a_shell_is_told_of_pictures_speaks_of_no_sockets() -> None:
    """At a shell nothing is connected: a picture is given."""
    parts = (("transformer", "model.safetensors"), ("text_encoder", "text.safetensors"))
    key = LoadKey("model.safetensors", parts=parts)
    for changes in ({"images": (torch.zeros(8, 8, 3),)}, {"last_image": torch.zeros(8, 8, 3)}):
        with pytest.raises(InputError) as error:
            check_absent(key, SampleRequest("a", decode=False, **changes))
        assert str(error.value).startswith("images = 'given': ")
        assert "connect" not in str(error.value)
    with pytest.raises(InputError, match="--text-encoder") as error:
        no_encoder()
    assert error.value.value == "none"
