"""The dispatcher: fused operations are used where they prove themselves, and never where they do not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastdiffusers.vae import kernels
from fastdiffusers.vae.api import decode
from fastdiffusers.vae.config import VaeConfig
from fastdiffusers.vae.kernels import Border, Kernels, Padded, eager, plain
from fastdiffusers.vae.kernels.saved_choices import SavedChoices
from fastdiffusers.vae.network.model import VideoVAE
from fastdiffusers.vae.settings import VaeSettings

OPERATIONS = kernels.OPERATIONS


def inputs(operation: str, size: int = 6) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 8, 2, size, size, generator=generator)
    weight = torch.randn(8, generator=generator)
    return {
        "group_norm_silu": (x, weight, weight, 2, 1e-6),
        "group_norm_statistics": (x, 2),
        "pixel_shuffle_3d": (x, 2),
        "put": (x,),
        "rms_norm_silu": (x, weight),
    }[operation]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one.size == other.size and torch.equal(one.mean, other.mean)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Makes a module the only fused implementation. Its operations are the eager ones unless given."""
    monkeypatch.setattr(kernels, "_choices", {})
    monkeypatch.setattr(kernels, "_refusals", {})
    monkeypatch.setattr(kernels, "SAVED", SavedChoices(None, {}))

    def make(name: str = "fake", reason: str = "", **operations: Any) -> ModuleType:
        module = ModuleType(f"{kernels.__name__}.{name}")
        module.NAME = name
        module.unavailable = lambda device: reason
        for operation in OPERATIONS:
            setattr(module, operation, operations.get(operation, getattr(eager, operation)))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(kernels, "FUSED", (name,))
        return module

    return make


def wrong(operation: str, by: float) -> Callable[..., Any]:
    """The eager operation, with one number changed."""

    def run(*arguments: Any, **options: Any) -> Any:
        result = getattr(eager, operation)(*arguments, **options)
        spoilt = result if isinstance(result, torch.Tensor) else result.deviations
        spoilt[(-1,) * spoilt.ndim] += by
        return result

    return run


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_agrees_is_used(fused: Any, operation: str) -> None:
    fused()
    run = Kernels()
    assert same(getattr(run, operation)(*inputs(operation)), getattr(eager, operation)(*inputs(operation)))
    assert run.used == {operation: "fake"}
    assert run.refusals() == {}


@pytest.mark.parametrize("by", [0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_wrong_number_switches_it_off(fused: Any, operation: str, by: float) -> None:
    fused(**{operation: wrong(operation, by)})
    run = Kernels()
    assert same(getattr(run, operation)(*inputs(operation)), getattr(eager, operation)(*inputs(operation)))
    assert run.used == {operation: "eager"}
    [(where, reason)] = run.refusals().items()
    assert where == f"fake, {operation}, torch.float32"
    assert "differs from the eager operation" in reason


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_raises_is_switched_off(fused: Any, operation: str) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no kernel image is available for execution on the device\nand more")

    fused(**{operation: broken})
    run = Kernels()
    assert same(getattr(run, operation)(*inputs(operation)), getattr(eager, operation)(*inputs(operation)))
    assert list(run.refusals().values()) == ["RuntimeError: no kernel image is available for execution on the device"]


def test_what_ignores_the_given_buffer_is_switched_off(fused: Any) -> None:
    def careless(*arguments: Any, out: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        made = eager.rms_norm_silu(*arguments, **options)
        return made if out is None else out

    fused(rms_norm_silu=careless)
    run = Kernels()
    run.rms_norm_silu(*inputs("rms_norm_silu"))
    assert "differs" in next(iter(run.refusals().values()))


def padded_buffer(fill: float = float("nan")) -> Padded:
    """Room for the inputs of the norms, with a border and frames in front."""
    return Padded(torch.full((1, 8, 4, 9, 7), fill), Border(left=1, right=0, top=1, bottom=2), 2)


@pytest.mark.parametrize("choice", ["auto", "eager", "plain"])
def test_what_surrounds_the_inside_is_filled(fused: Any, choice: str) -> None:
    """Also where an implementation knows nothing of it."""
    fused()
    out = padded_buffer()
    made = Kernels(choice).rms_norm_silu(*inputs("rms_norm_silu"), out=out)
    expected = plain.rms_norm_silu(*inputs("rms_norm_silu"))
    torch.testing.assert_close(made, expected)
    expected = F.pad(torch.cat([expected[:, :, :1]] * 2 + [expected], dim=2), (1, 0, 1, 2))
    torch.testing.assert_close(out.buffer, expected)


def fills_whole(x: torch.Tensor, weight: torch.Tensor, *more: Any, out: Any = None, **options: Any) -> torch.Tensor:
    if not isinstance(out, Padded):
        return eager.rms_norm_silu(x, weight, *more, out=out, **options)
    made = eager.rms_norm_silu(x, weight, *more, out=out.inside, **options)
    out.surround()
    return made


def forgets_a_corner(*arguments: Any, out: Any = None, **options: Any) -> torch.Tensor:
    made = fills_whole(*arguments, out=out, **options)
    if isinstance(out, Padded):
        out.buffer[:, :, :, -1, -1] = 1.0
    return made


@pytest.mark.parametrize(("function", "used"), [(fills_whole, "fake"), (forgets_a_corner, "eager")])
def test_who_says_it_fills_buffers_has_to_prove_it(fused: Any, function: Any, used: str) -> None:
    fused(rms_norm_silu=function).WRITES_PADDING = True
    run, out = Kernels(), padded_buffer()
    run.rms_norm_silu(*inputs("rms_norm_silu"), out=out)
    assert run.used == {"rms_norm_silu": used}
    assert not out.buffer[..., -2:, :].any()


@pytest.mark.parametrize("last", [False, True])
def test_the_norms_take_the_bias_of_the_convolution_before(last: bool) -> None:
    x, weight, *rest = inputs("group_norm_silu")
    x = x.contiguous(memory_format=torch.channels_last_3d) if last else x
    before = torch.arange(8.0)
    summed = x + before.view(-1, 1, 1, 1)
    expected = plain.group_norm_silu(summed, weight, *rest)
    moments = plain.group_norm_statistics(summed, 2)
    for one in (plain, eager):
        torch.testing.assert_close(one.group_norm_silu(x, weight, *rest, input_bias=before), expected)
        found = one.group_norm_statistics(x, 2, input_bias=before)
        torch.testing.assert_close(tuple(found), tuple(moments))
        given = found.statistics(1e-6)
        made = one.group_norm_silu(x, weight, *rest, input_bias=before, statistics=given)
        torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_what_is_put_somewhere(add: bool, biased: bool) -> None:
    [x], bias = inputs("put"), torch.arange(8.0)
    there = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    expected = x + (bias.view(-1, 1, 1, 1) if biased else 0) + (there if add else 0)
    for one in (plain, eager):
        out = torch.zeros(1, 8, 2, 12, 6)
        out[..., ::2, :] = there
        one.put(x, out=out[..., ::2, :], bias=bias if biased else None, add=add)
        torch.testing.assert_close(out[..., ::2, :], expected)
        assert not out[..., 1::2, :].any()


def test_frames_that_wait_elsewhere_are_no_matter_for_a_kernel(fused: Any) -> None:
    fused(put=lambda *given, **options: pytest.fail("a kernel was asked"))
    x = torch.ones(1, 8, 1, 2, 2)
    assert Kernels().put(x, out=torch.empty(x.shape, device="meta")).is_meta


@pytest.mark.parametrize("drop_head", [False, True])
def test_the_shuffles_add_bias_and_residual(drop_head: bool) -> None:
    x, bias = inputs("pixel_shuffle_3d")[0], torch.arange(8.0)
    options: dict[str, Any] = {"drop_head": drop_head, "bias": bias}
    expected = plain.pixel_shuffle_3d(x + bias.view(-1, 1, 1, 1), 2, drop_head=drop_head)
    residual = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    for one in (plain, eager):
        torch.testing.assert_close(one.pixel_shuffle_3d(x, 2, **options), expected)
        torch.testing.assert_close(one.pixel_shuffle_3d(x, 2, **options, residual=residual), expected + residual)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_failure_at_a_size_it_was_not_probed_with_falls_back_for_good(fused: Any, operation: str) -> None:
    calls = []

    def small_only(x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        calls.append(x.shape)
        if x.shape[-1] > 7:
            raise ValueError("too many resources requested for launch")
        return getattr(eager, operation)(x, *arguments, **options)

    fused(**{operation: small_only})
    run = Kernels()
    for _ in range(2):
        result = getattr(run, operation)(*inputs(operation, 8))
        assert same(result, getattr(eager, operation)(*inputs(operation, 8)))
    assert calls[-1][-1] == 8
    assert [shape[-1] for shape in calls].count(8) == 1
    assert run.used == {operation: "eager"}
    assert "too many resources" in next(iter(run.refusals().values()))


@pytest.mark.parametrize("versions", [{"torch": "2.13"}, {"torch": "2.14"}])
def test_a_failure_is_remembered_for_these_versions_only(
    fused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, versions: dict[str, str]
) -> None:
    def next_process(memory: SavedChoices) -> Kernels:
        for name, value in (("_choices", {}), ("_refusals", {}), ("SAVED", memory)):
            monkeypatch.setattr(kernels, name, value)
        run = Kernels()
        run.rms_norm_silu(*inputs("rms_norm_silu"))
        return run

    fused(rms_norm_silu=wrong("rms_norm_silu", 1.0))
    first = next_process(SavedChoices(tmp_path / "kernels.json", {"torch": "2.13"}))
    assert first.used == {"rms_norm_silu": "eager"}
    fused()  # the kernel is right now, and nobody has told the file
    second = next_process(SavedChoices(tmp_path / "kernels.json", versions))
    known = versions == {"torch": "2.13"}
    assert second.used == {"rms_norm_silu": "eager" if known else "fake"}
    assert second.refusals() == (first.refusals() if known else {})


def test_out_of_memory_keeps_its_type_and_condemns_nothing(fused: Any) -> None:
    def large(x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if x.shape[-1] > 7:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return eager.rms_norm_silu(x, *arguments, **options)

    fused(rms_norm_silu=large)
    run = Kernels()
    with pytest.raises(torch.OutOfMemoryError):
        run.rms_norm_silu(*inputs("rms_norm_silu", 8))
    run.rms_norm_silu(*inputs("rms_norm_silu", 6))
    assert run.used == {"rms_norm_silu": "fake"}


def test_what_is_not_available_says_why(fused: Any) -> None:
    fused(reason="the card is too old")
    run = Kernels()
    run.rms_norm_silu(*inputs("rms_norm_silu"))
    assert run.refusals() == {"fake, rms_norm_silu, torch.float32": "the card is too old"}


def test_what_cannot_be_imported_says_why(fused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "FUSED", ("not_there",))
    run = Kernels()
    run.rms_norm_silu(*inputs("rms_norm_silu"))
    assert "ModuleNotFoundError" in next(iter(run.refusals().values()))


def test_each_kind_of_input_is_probed_once(fused: Any) -> None:
    probed = []

    def counted(x: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        probed.append(x.dtype)
        return eager.rms_norm_silu(x, *arguments, **options)

    fused(rms_norm_silu=counted)
    x, weight = inputs("rms_norm_silu")
    run = Kernels()
    counts = []
    for kind in (x, x, x.to(torch.bfloat16), x.contiguous(memory_format=torch.channels_last_3d), x):
        before = len(probed)
        run.rms_norm_silu(kind, weight.to(kind.dtype))
        counts.append(len(probed) - before)
    assert counts == [3, 1, 3, 3, 1]


def test_kernels_for_cards_are_not_even_imported_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_module", lambda name: pytest.fail(f"{name} was imported"))
    run = Kernels()
    for operation in OPERATIONS:
        getattr(run, operation)(*inputs(operation))
    assert run.used == {}
    assert run.refusals() == {}


@pytest.mark.parametrize("choice", ["eager", "plain"])
def test_a_choice_is_obeyed(fused: Any, choice: str) -> None:
    fused(rms_norm_silu=lambda *a, **o: pytest.fail("it was asked"))
    Kernels(choice).rms_norm_silu(*inputs("rms_norm_silu"))


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("activation", [False, True])
def test_the_rms_norms_agree_with_float64(with_bias: bool, activation: bool) -> None:
    x, weight = inputs("rms_norm_silu")
    bias = weight.flip(0) if with_bias else None
    exact = plain.rms_norm_silu(
        x.double(), weight.double(), None if bias is None else bias.double(), activation=activation
    )
    for module in (eager, plain):
        for out in (None, torch.empty_like(x)):
            y = module.rms_norm_silu(x, weight, bias, activation=activation, out=out)
            torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
            assert out is None or y is out


def test_a_broken_kernel_leaves_the_picture_as_it_is(fused: Any) -> None:
    torch.manual_seed(0)
    config = VaeConfig(block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, temporal_scale_num=1)
    vae = VideoVAE(config).prepare()
    latents = torch.randn(1, 16, 3, 4, 4)
    expected, _ = decode(vae, latents, VaeSettings(kernels="eager"))
    fused(group_norm_silu=wrong("group_norm_silu", 1.0), pixel_shuffle_3d=wrong("pixel_shuffle_3d", 1.0))
    frames, report = decode(vae, latents, VaeSettings(kernels="auto"))
    assert torch.equal(frames, expected)
    assert "group_norm_silu: eager" in report["kernels"].applied
    assert "fake, group_norm_silu, torch.float32: it differs from the eager operation" in report["kernels"].reason
