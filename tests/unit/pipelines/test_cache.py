"""One pipeline at a time, freed before the next one loads, never lost to a load that cannot succeed."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref

import pytest
import torch

from fastdiffusers.callbacks import SILENT, Callbacks
from fastdiffusers.errors import ModelFileError
from fastdiffusers.pipelines.cache import PipelineCache
from fastdiffusers.pipelines.loading import loader
from fastdiffusers.pipelines.recognize import family_of
from fastdiffusers.pipelines.types import LoadedPipeline, LoadKey

PATIENCE = 120
"""Seconds for what takes moments on an idle machine: a collection of garbage takes seconds beside other work."""


class Model:
    """A pipeline that can be watched by weak reference; like real ones it is part of a reference cycle."""

    def __init__(self):
        self.itself = self


class Loader:
    """Counts loads, and notes which earlier pipelines were still alive at each."""

    def __init__(self):
        self.references, self.alive, self.fail = {}, [], False

    def load(self, key, callbacks=SILENT):
        self.alive.append([name for name, reference in self.references.items() if reference() is not None])
        if self.fail:
            raise ModelFileError("model", key.source, "it could not be loaded")
        pipeline = Model()
        self.references[key.source] = weakref.ref(pipeline)
        return LoadedPipeline(key, pipeline, family_of("FluxPipeline"), torch.device("cpu"), torch.float32)


@pytest.fixture
def counting():
    gc.collect()
    return Loader()


def make(counting, capacity=1, check=lambda key: None):
    return PipelineCache(capacity, load=counting.load, check=check)


A, B, C = LoadKey("a"), LoadKey("b"), LoadKey("c")


def test_equal_keys_share_one_pipeline(counting):
    cache = make(counting)
    with cache.use(A) as first:
        pass
    with cache.use(LoadKey("a")) as second:
        assert second is first
    assert len(counting.alive) == 1
    assert cache.keys() == (A,)


def test_the_old_pipeline_is_gone_before_the_new_one_loads(counting):
    cache = make(counting)
    for key in (A, B, A):
        with cache.use(key):
            pass
    assert counting.alive == [[], [], []]
    assert cache.keys() == (A,)


def test_every_part_of_the_key_reloads(counting):
    cache = make(counting)
    changes = (
        {},
        {"dtype": "float16"},
        {"identity": "edited"},
        {"lora_rank": 8},
        {"component_dtypes": (("vae", "x"),)},
    )
    for key in (LoadKey("a", **change) for change in changes):
        with cache.use(key):
            pass
    assert len(counting.alive) == len(changes)


def test_the_least_recently_used_makes_room(counting):
    cache = make(counting, capacity=2)
    for key in (A, B, A, C):
        with cache.use(key):
            pass
    assert cache.keys() == (A, C)
    assert counting.references["b"]() is None


def test_a_load_that_cannot_succeed_frees_nothing(counting):
    def check(key):
        if key == B:
            raise ModelFileError("model", "b", "half-downloaded")

    cache = make(counting, check=check)
    with cache.use(A) as loaded:
        pipeline = loaded.pipeline
    with pytest.raises(ModelFileError, match="half-downloaded"), cache.use(B):
        pytest.fail("a failed load must not be lent")
    with cache.use(A) as again:
        assert again.pipeline is pipeline


def test_a_load_that_fails_after_all_leaves_an_empty_usable_cache(counting):
    cache = make(counting)
    with cache.use(A):
        pass
    counting.fail = True
    with pytest.raises(ModelFileError), cache.use(B):
        pytest.fail("a failed load must not be lent")
    assert cache.keys() == ()
    counting.fail = False
    with cache.use(B) as loaded:
        assert loaded.key == B


def test_what_is_borrowed_further_up_is_never_freed(counting):
    cache = make(counting)
    with cache.use(A) as outer:
        with cache.use(B):
            assert counting.references["a"]() is outer.pipeline
        cache.clear()
        assert cache.keys() == (A,)
    del outer
    cache.clear()
    assert cache.keys() == ()
    assert counting.references["a"]() is None


def test_an_exception_in_the_run_gives_the_pipeline_back(counting):
    cache = make(counting)
    with pytest.raises(KeyboardInterrupt), cache.use(A):
        raise KeyboardInterrupt
    finished = []
    thread = threading.Thread(target=lambda: finished.append(cache.use(A).__enter__().key))
    thread.start()
    thread.join(PATIENCE)
    assert finished == [A]


def test_another_thread_waits_and_its_wait_can_be_cancelled(counting):
    cache = make(counting)
    waiting, cancelled = threading.Event(), threading.Event()

    class Interrupted(Exception):
        pass

    def check_cancel():
        waiting.set()
        if cancelled.is_set():
            raise Interrupted

    outcome = []

    def other():
        try:
            with cache.use(A, Callbacks(check_cancel=check_cancel)):
                outcome.append("entered")
        except Interrupted:
            outcome.append("cancelled")

    with cache.use(A):
        thread = threading.Thread(target=other)
        thread.start()
        assert waiting.wait(PATIENCE)
        assert outcome == []
        cancelled.set()
        thread.join(PATIENCE)
    assert outcome == ["cancelled"]
    with cache.use(A):
        pass


def test_something_that_keeps_a_pipeline_alive_is_logged(counting, caplog):
    cache = make(counting)
    with cache.use(A) as loaded:
        leak = loaded.pipeline
    cache.clear()
    ended()
    assert "still holds it" in caplog.text
    assert leak is not None


def ended() -> None:
    """Wait until what was released has been looked for."""
    for thread in threading.enumerate():
        if thread.name == "fastdiffusers-free":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_what_a_finalizer_releases_within_a_collection_goes_too(counting, caplog):
    """ComfyUI collects after `/free`, and the last handle goes in the middle of that."""

    class Handle: ...

    cache = make(counting)
    with cache.use(A) as loaded:
        pipeline = loaded.pipeline
        pipeline.itself = pipeline  # hooks refer to what they are on
        reference = weakref.ref(pipeline)
        del pipeline, loaded
    handle = Handle()
    handle.itself = handle
    weakref.finalize(handle, cache.discard, A)
    del handle
    gc.collect()
    ended()
    assert cache.keys() == ()
    assert reference() is None
    assert not caplog.text


def test_capacity_is_at_least_one():
    with pytest.raises(ValueError, match="capacity"):
        PipelineCache(0)


def test_real_pipelines_are_freed_first_and_a_vanished_folder_evicts_nothing(tiny_folder, tmp_path):
    copies = [shutil.copytree(tiny_folder("sd3"), tmp_path / name) for name in ("one", "two")]
    one, two = (loader.resolve(str(copy)) for copy in copies)
    references = []

    def load(key, callbacks=SILENT):
        assert [reference() for reference in references] == [None] * len(references)
        loaded = loader.load(key, callbacks)
        references.append(weakref.ref(loaded.pipeline.transformer))
        return loaded

    cache = PipelineCache(load=load)
    with cache.use(one):
        pass
    shutil.rmtree(copies[1])
    with pytest.raises(ModelFileError, match="not there any more"), cache.use(two):
        pytest.fail("the folder is gone")
    assert cache.keys() == (one,)
    half = loader.resolve(str(copies[0]), dtype="bfloat16")
    with cache.use(half) as loaded:
        assert loaded.pipeline.transformer.dtype == torch.bfloat16
    assert len(references) == 2


def test_a_pipeline_that_is_discarded_while_another_thread_samples_goes_when_that_is_done(counting):
    cache = make(counting, capacity=2)
    with cache.use(A):
        pass
    sampling, done = threading.Event(), threading.Event()

    def sample() -> None:
        with cache.use(B):
            sampling.set()
            done.wait(PATIENCE)

    thread = threading.Thread(target=sample)
    thread.start()
    assert sampling.wait(PATIENCE)
    cache.discard(A)  # does not wait
    cache.discard(B)
    assert cache.keys() == (A, B)
    done.set()
    thread.join(PATIENCE)
    assert cache.keys() == ()
    assert counting.references["a"]() is None
    with cache.use(A):
        pass
    assert cache.keys() == (A,), "what was discarded once can be loaded again"


def test_what_is_discarded_in_the_middle_of_its_own_use_goes_afterwards(counting):
    cache = make(counting)
    with cache.use(A):
        cache.discard(A)
        with cache.use(A):
            pass
        cache.discard(A)
        assert cache.keys() == (A,)
    assert cache.keys() == ()
