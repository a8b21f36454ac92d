"""Cancel and Ctrl-C while code is compiled: they arrive at every stage of it, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch._dynamo
from torch._dynamo.backends import registry

from fastdiffusers.callbacks import Callbacks
from fastdiffusers.compile_stop import stoppable
from fastdiffusers.optimizations.apply import active, apply
from fastdiffusers.optimizations.compiled_region import Region
from fastdiffusers.optimizations.settings import CompileSettings, OptimizationSettings, TilingSettings
from fastdiffusers.report import OptimizationReport
from fastdiffusers.vae import VaeConfig, VaeSettings, VideoVAE, compiled, decode_raw

pytestmark = [pytest.mark.no_cover, pytest.mark.usefixtures("fresh_dynamo")]

NEVER = 30.0
"""Seconds that a held stage would take."""
STAGES = {
    "tracing": ("torch._dynamo.symbolic_convert", "InstructionTranslatorBase.run"),
    "autograd": ("torch._functorch._aot_autograd.graph_compile", "aot_stage2_inference"),
    "lowering": ("torch._inductor.graph", "GraphLowering.run"),
    "scheduling": ("torch._inductor.graph", "GraphLowering.codegen"),
    "C++": ("torch._inductor.cpp_builder", "_run_compile_cmd"),
}


class Cancelled(Exception):
    """What a host raises: an ordinary exception, which code that works around failures must not take for one."""


class Held:
    """Stands in for a function that takes for ever; `reached` once it is called, `ended` if nothing stopped it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.ended = False

    def __call__(self, *_: Any, **__: Any) -> None:
        self.reached.set()
        end = time.monotonic() + NEVER
        while time.monotonic() < end:
            time.sleep(0.01)
        self.ended = True

    def cancel(self, _: object = None) -> None:
        if self.reached.is_set():
            raise CANCEL


CANCEL = Cancelled("the user pressed Cancel")


class HeldCompiler(Held):
    """A C++ compiler that never ends: a process, which a thread of inductor's waits for."""

    def __call__(self, *_: Any, **__: Any) -> None:
        self.reached.set()
        program = f"import time; time.sleep({NEVER})"
        subprocess.run([sys.executable, "-c", program, os.environ["TORCHINDUCTOR_CACHE_DIR"]], check=True)
        self.ended = True


def hold(monkeypatch: pytest.MonkeyPatch, stage: str) -> Held:
    held = HeldCompiler() if stage == "C++" else Held()
    module, path = STAGES[stage]
    *owner, name = path.split(".")
    place = import_module(module)
    for part in owner:
        place = getattr(place, part)
    monkeypatch.setattr(place, name, lambda *args, **kwargs: held(*args, **kwargs))
    return held


@pytest.fixture
def kept(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What was compiled is found again by later runs and tests."""
    folder = tmp_path_factory.getbasetemp() / "stopped"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return folder


@contextlib.contextmanager
def every_stage() -> Iterator[None]:
    """Every stage runs at every compilation; only what the C++ compiler has made is found again."""
    patch = torch._inductor.config.patch(fx_graph_cache=False)
    with patch, torch._functorch.config.patch(enable_autograd_cache=False):
        yield


@pytest.fixture
def inductor(kept: Path) -> Iterator[Path]:
    with every_stage():
        yield kept


def left() -> tuple[int, int]:
    """Processes below this one, and threads that are no idle ones of a pool."""
    threads = [thread for thread in threading.enumerate() if "ThreadPoolExecutor" not in thread.name]
    return len(psutil.Process().children(recursive=True)), len(threads)


def in_a_thread(call: Callable[[], Any]) -> Any:
    """What `call` returns or raises in a thread of its own, which is where ComfyUI runs a graph."""

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:  # noqa: BLE001 - of any type: it is raised in the other thread
            result.set_exception(error)

    result: Future[Any] = Future()
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result.result()


def directly(call: Callable[[], Any]) -> Any:
    return call()


def code(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.compile(lambda x: torch.softmax(x * seed, -1).sin() + x)


X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("thread", ["main", "another"])
@pytest.mark.parametrize("stage", STAGES)
def test_cancel_arrives_at_every_stage(
    stage: str, thread: str, inductor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = in_a_thread if thread == "another" else directly
    with torch.no_grad():
        reference = code(3)(X)
    torch._dynamo.reset()
    if stage == "C++":  # what is found on disk is not compiled
        for library in inductor.rglob("*.so"):
            library.unlink()
        torch._inductor.codecache.CppPythonBindingsCodeCache.cache_clear()
    before = left()
    with monkeypatch.context() as patch, torch.no_grad():
        held = hold(patch, stage)
        function = code(3)
        with pytest.raises(Cancelled) as caught:
            begin(lambda: stoppable(torch.no_grad()(lambda: function(X)), held.cancel))
    assert caught.value is CANCEL
    assert not held.ended, "it was never stopped"
    assert left() == before
    with torch.no_grad():
        assert torch.equal(stoppable(lambda: function(X), held_never), reference)


def held_never(seconds: float) -> None:
    assert seconds >= 0


def test_ctrl_c_stops_compiling(inductor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    before, handler = left(), signal.getsignal(signal.SIGINT)
    pressed: list[float] = []

    def press(seconds: float) -> None:
        if held.reached.is_set() and not pressed:
            pressed.append(seconds)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, torch.no_grad():
        held = hold(patch, "lowering")
        with pytest.raises(KeyboardInterrupt):
            stoppable(lambda: code(4)(X), press)
    assert not held.ended, "it was never stopped"
    assert left() == before
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_fails_by_itself_keeps_its_error(inductor: Path) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        raise ValueError("no compiler")

    with pytest.raises(Exception, match="no compiler"):
        stoppable(lambda: torch.compile(lambda x: x + 1, backend=broken)(X), held_never)


class HeldBackend(Held):
    """A backend "held" that runs graphs as they are; making one of them takes for ever, until it is `open`."""

    def __init__(self) -> None:
        super().__init__()
        self.open = False
        self.holds = 1
        self.graphs = 0

    def compile(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        if self.graphs >= self.holds and not self.open:
            self()
        return graph.forward


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> HeldBackend:
    held = HeldBackend()
    function = lambda graph, inputs: held.compile(graph, inputs)
    function._tags = ()  # type: ignore[attr-defined]
    monkeypatch.setitem(registry._COMPILER_FNS, "held", function)
    monkeypatch.setitem(registry._BACKENDS, "held", None)
    return held


@pytest.mark.parametrize(("scope", "holds"), [("blocks", 2), ("model", 1)])
def test_a_pipeline_goes_on_as_if_nothing_had_been(
    scope: str, holds: int, tiny_pipeline: Any, picture: Any, backend: HeldBackend
) -> None:
    backend.holds = holds
    settings = OptimizationSettings(
        torch_compile="on",
        compile=CompileSettings(backend="held", scope=scope, dynamic="off"),
        vae_tiling=TilingSettings(mode="off", slicing="off"),
    )
    pipeline = tiny_pipeline("flux")
    plain = picture(pipeline, "flux")
    before = left()

    def run(callbacks: Callbacks) -> Any:
        report = apply(pipeline, settings, callbacks=callbacks)
        with active(pipeline, settings, report):
            return picture(pipeline, "flux"), report

    with pytest.raises(Cancelled) as caught:
        run(Callbacks(check_cancel=backend.cancel))
    assert caught.value is CANCEL
    assert not backend.ended, "it was never stopped"
    assert left() == before
    backend.open = True
    again, report = run(Callbacks())
    assert report["torch_compile"].applied != "off"
    assert backend.graphs > holds
    assert torch.equal(again, plain)


def test_the_video_vae_goes_on_as_if_nothing_had_been(backend: HeldBackend) -> None:
    torch.manual_seed(0)
    config = VaeConfig(block_out_channels=(8, 16), layers_per_block=1, temporal_scale_num=1, norm_num_groups=4)
    vae = VideoVAE(config).eval().requires_grad_(False)
    z = torch.randn(1, 16, 1, 4, 4)
    plain, _ = decode_raw(vae, z, VaeSettings(mode="whole"))
    chosen = VaeSettings(mode="whole", compile={"backend": "held"})
    before = left()
    with pytest.raises(Cancelled) as caught:
        decode_raw(vae, z, chosen, Callbacks(check_cancel=backend.cancel))
    assert caught.value is CANCEL
    assert not backend.ended, "it was never stopped"
    assert left() == before
    backend.open = True
    result, report = decode_raw(vae, z, chosen)
    assert report["torch_compile"].applied != "off"
    assert "compiling took" in report["torch_compile"].cost
    assert float((result - plain).abs().max() / plain.std()) <= 2e-5


MOMENTS = {
    "before the first graph": ("torch._dynamo.convert_frame", "trace_frame"),
    **{stage: STAGES[stage] for stage in ("tracing", "lowering", "C++")},
    "done": ("", ""),
}
Run = Callable[[Callbacks], tuple[torch.Tensor, OptimizationReport]]
"""Makes something by compiled code; compiles all of it unless it is found on disk."""


def hold_at(patch: pytest.MonkeyPatch, moment: str, done: tuple[Any, str], folder: Path) -> Held:
    """Stop what is compiled from now on at the moment, which has to be reached.

    Args:
        done: a module or class and the name of its function that is called once something is compiled.
        folder: where code is kept that nothing may find.
    """
    held = HeldCompiler() if moment == "C++" else Held()
    if moment == "done":  # after which nothing is held: the next look at whether to stop has to see it
        wanted = getattr(*done)
        patch.setattr(*done, lambda *args: (held.reached.set(), wanted(*args))[1])
        return held
    if moment == "C++":  # what is found on disk or in this process is not compiled
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        for kind in ("CppCodeCache", "CppPythonBindingsCodeCache"):
            getattr(torch._inductor.codecache, kind).cache_clear()
    module, path = MOMENTS[moment]
    *owner, name = path.split(".")
    place = import_module(module)
    for part in owner:
        place = getattr(place, part)
    patch.setattr(place, name, lambda *args, **kwargs: held(*args, **kwargs))
    return held


def cancel_at_every_moment(run: Run, done: tuple[Any, str], folder: Path) -> None:
    """What the first run has compiled is found on disk by those after a cancel, which have to give the same bits."""
    reference, report = run(Callbacks())
    assert report["torch_compile"].applied != "off", report["torch_compile"].reason
    uncancelled = left()  # inductor's first lowering starts tqdm's thread, which stays
    for moment in MOMENTS:
        torch._dynamo.reset()
        with pytest.MonkeyPatch.context() as patch:
            held = hold_at(patch, moment, done, folder)
            looks: list[None] = []

            def cancel(held: Held = held, looks: list[None] = looks) -> None:
                if held.reached.is_set():
                    looks.append(None)
                    raise CANCEL

            with every_stage(), pytest.raises(Cancelled) as caught:
                run(Callbacks(check_cancel=cancel))
        assert caught.value is CANCEL, moment
        assert not held.ended, moment
        assert len(looks) == 1, moment
        assert left() == uncancelled, moment
        again, report = run(Callbacks())
        assert report["torch_compile"].applied != "off", (moment, report["torch_compile"].reason)
        assert torch.equal(again, reference), moment
        assert left() == uncancelled, moment


@pytest.mark.parametrize("scope", ["blocks", "slice"])
def test_five_moments_of_compiling_the_video_vae(scope: str, kept: Path, tmp_path: Path) -> None:
    """By inductor itself."""
    config = VaeConfig(block_out_channels=(8,), layers_per_block=1, temporal_scale_num=0, norm_num_groups=4)
    chosen = VaeSettings(mode="whole", compile={}, compile_scope=scope, compile_trial=False)
    z = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def run(callbacks: Callbacks) -> tuple[torch.Tensor, OptimizationReport]:
        torch.manual_seed(0)  # a new one each time: what is known to be right is not compared again
        vae = VideoVAE(config).eval().requires_grad_(False)
        return decode_raw(vae, z, chosen, callbacks)

    cancel_at_every_moment(run, (compiled, "_check"), tmp_path)


@pytest.mark.parametrize("scope", ["blocks", "model"])
def test_five_moments_of_compiling_a_denoiser(
    scope: str, tiny_pipeline: Any, picture: Any, room: None, kept: Path, tmp_path: Path
) -> None:
    """By inductor itself."""
    settings = OptimizationSettings(
        torch_compile="on",
        compile=CompileSettings(scope=scope, dynamic="off"),
        vae_tiling=TilingSettings(mode="off", slicing="off"),
    )

    def run(callbacks: Callbacks) -> tuple[torch.Tensor, OptimizationReport]:
        pipeline = tiny_pipeline("flux")
        pipeline.transformer.transformer_blocks = torch.nn.ModuleList()  # of one kind of block there is enough
        report = apply(pipeline, settings, callbacks=callbacks)
        with active(pipeline, settings, report):
            return picture(pipeline, "flux", steps=1), report

    cancel_at_every_moment(run, (Region, "after_first_call"), tmp_path)
