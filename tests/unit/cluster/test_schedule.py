"""Who does what next: models stay where they are loaded, and nothing is lost or done twice."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiffusers.cluster.schedule import MOST_TRIES, Job, Schedule


def jobs(models: str) -> list[Job]:
    return [Job(number, model, None) for number, model in enumerate(models)]


def taken(schedule: Schedule, worker: str) -> int | None:
    job = schedule.take(worker)
    return None if job is None else job.number


def test_each_worker_goes_on_with_its_model() -> None:
    schedule = Schedule(jobs("aabb"))
    assert [taken(schedule, "x"), taken(schedule, "y")] == [0, 2]
    schedule.done("x", 1, 0)
    schedule.done("y", 1, 0)
    assert [taken(schedule, "x"), taken(schedule, "y")] == [1, 3]


def test_a_model_that_is_still_loading_is_shared_at_once() -> None:
    schedule = Schedule(jobs("aaa"))
    assert [taken(schedule, worker) for worker in "xyz"] == [0, 1, 2]


@pytest.mark.parametrize(("load_seconds", "joins"), [(1.0, True), (100.0, False)])
def test_a_loaded_model_is_shared_where_that_is_quicker(load_seconds: float, joins: bool) -> None:
    schedule = Schedule(jobs("aaaaaa"))
    schedule.take("x")
    schedule.done("x", load_seconds + 1, load_seconds)
    schedule.take("x")
    assert (schedule.take("y") is not None) is joins


def test_a_model_whose_only_worker_is_gone_is_taken_by_whoever_is_free() -> None:
    schedule = Schedule(jobs("aa"))
    schedule.take("x")
    schedule.done("x", 101, 100)
    schedule.take("x")
    assert schedule.take("y") is None
    assert schedule.gone("x") is None
    assert taken(schedule, "y") == 1


def test_what_a_worker_has_from_before_is_gone_on_with() -> None:
    schedule = Schedule(jobs("ab"))
    schedule.has("x", "b")
    first = schedule.take("x")
    assert first is not None
    assert first.model == "b"


def test_an_item_that_ends_its_workers_is_tried_three_times() -> None:
    schedule = Schedule(jobs("a"))
    for worker in "xy":
        schedule.take(worker)
        assert schedule.gone(worker) is None
    schedule.take("z")
    ended = schedule.gone("z")
    assert MOST_TRIES == 3
    assert ended is not None
    assert ended.number == 0
    assert schedule.unfinished == 0


def test_a_model_that_one_cannot_read_goes_to_another() -> None:
    schedule = Schedule(jobs("aab"))
    schedule.take("x")
    schedule.refused("x")
    assert schedule.hopeless(["x", "y"]) == []
    assert taken(schedule, "x") == 2
    assert taken(schedule, "y") == 0
    schedule.refused("y")
    assert [job.number for job in schedule.hopeless(["x", "y"])] == [0, 1]
    assert schedule.unfinished == 1


@settings(max_examples=200, deadline=None)
@given(models=st.text("abc", max_size=30), workers=st.integers(1, 5), seed=st.randoms(use_true_random=False))
def test_everything_is_done_once_whatever_happens(models: str, workers: int, seed: object) -> None:
    schedule = Schedule(jobs(models))
    names = [f"w{number}" for number in range(workers)]
    ended: Counter[int] = Counter()
    loads: Counter[tuple[str, object]] = Counter()
    has: dict[str, object] = {}
    count, deaths = workers, 0
    while schedule.unfinished:
        for name in list(names):
            if schedule.running(name) is None and (job := schedule.take(name)) is not None:
                loads[name, job.model] += has.get(name) != job.model
                has[name] = job.model
        busy = [name for name in names if schedule.running(name)]
        assert busy, "everybody waits"
        name = seed.choice(busy)  # type: ignore[attr-defined]
        if seed.random() < 0.2:  # type: ignore[attr-defined]
            job = schedule.gone(name)
            names.remove(name)
            names.append(f"w{count}")
            count, deaths = count + 1, deaths + 1
            ended.update([] if job is None else [job.number])
        else:
            ended[schedule.done(name, 2, 1).number] += 1
    assert ended == Counter(range(len(models)))
    assert deaths or all(number == 1 for number in loads.values())
