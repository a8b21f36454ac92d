"""Errors of other libraries as one line: the line that names the cause."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers.utils import import_utils

from fastdiffusers.errors import InputError, check_choice, first_line
from fastdiffusers.fallback import all_finite, describe, is_out_of_memory, largest_difference


def lazy_import_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> BaseException:
    """What diffusers raises when a model's module cannot be imported: the cause stands on its second line."""
    package = folder / "broken_models"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "modeling.py").write_text("import package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(folder))
    lazy = import_utils._LazyModule("broken_models", str(package / "__init__.py"), {"modeling": ["Model"]})
    monkeypatch.delitem(sys.modules, "broken_models", raising=False)
    with pytest.raises(RuntimeError) as caught:
        lazy._get_module("modeling")
    return caught.value


def test_the_cause_of_a_lazy_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = lazy_import_error(tmp_path, monkeypatch)
    assert "package_that_is_not_there" not in str(error).splitlines()[0]
    assert "package_that_is_not_there" in first_line(error)
    assert "package_that_is_not_there" in describe(error)


def test_a_line_that_only_announces_is_joined_with_the_next() -> None:
    announced = "Failed to import it because of the following error (look up to see its traceback):"
    error = RuntimeError(f"{announced}\n\n  No module named 'x'\nand more")
    cause = f"{announced} No module named 'x'"
    assert first_line(error) == cause
    assert describe(error) == f"RuntimeError: {cause}"
    assert first_line(ValueError("nothing follows:")) == "nothing follows:"


def test_other_errors_are_their_first_line() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert (first_line(ValueError()), describe(ValueError())) == ("ValueError", "ValueError")
    assert describe(ValueError("one\ntwo")) == "ValueError: one"
    long = describe(ValueError("x" * 500))
    assert len(long) == 200
    assert long.endswith("xxx...")


def test_a_choice_is_one_of_its_choices() -> None:
    check_choice("mode", "on", ("on", "off"))
    with pytest.raises(InputError, match=r"mode = 'maybe': it is not one of the choices. Choose one of: on, off"):
        check_choice("mode", "maybe", ("on", "off"))


def test_what_fallbacks_ask() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("no"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not all_finite((torch.ones(2), {"x": torch.tensor([float("nan")])}))
    assert all_finite((torch.ones(2).to(torch.float8_e4m3fn), torch.ones(2, dtype=torch.uint8)))
    assert not all_finite(torch.tensor([float("nan")]).to(torch.float8_e4m3fn))
    assert largest_difference(torch.tensor([1, 5], dtype=torch.bfloat16), torch.tensor([1.0, 3.0])) == 2.0
