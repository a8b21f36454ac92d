"""Guidance's two branches in two processes, which two threads play: what is split, what is guessed, and what is not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parent))

from members import Member, Members

from fastdiffusers.cluster.parallel.branches import Branches, OtherFailedError
from fastdiffusers.cluster.parallel.nested import halved, joined


class Denoiser(nn.Module):
    """Adds its texts to the latents; remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[float] = []

    def forward(self, hidden_states: Any, timestep: Any = None, text: Any = None, **more: Any) -> tuple[Any]:
        if isinstance(hidden_states, list):
            self.texts += [float(each.flatten()[0]) for each in text]
            return ([one + other for one, other in zip(hidden_states, text, strict=True)],)
        self.texts += [float(each) for each in text[:, 0]]
        return (hidden_states + text,)


def steps(member: Member, model: Denoiser, calls: Callable[[int], list[dict[str, Any]]], count: int) -> list[Any]:
    """A run of so many steps, each of these calls, made as `gate` makes them; gives how each call was made."""
    branches = Branches(model, member, 1)
    how: list[Any] = []
    for step in range(count):
        for call in calls(step):
            if (made := branches.known((), call)) is not None:
                result, way = made[0], "known"
            elif (plan := branches.plan((), call)) is not None:
                result, *second = branches.made(plan, model)
                way = "in turn" if second else "a batch"
                if second:
                    branches.expect(plan, second[0])
            else:
                result, way = model(**call), "whole"
                branches.watch((), call, result)
            assert torch.equal(result[0], Denoiser()(**call)[0])
            how.append(way)
    return how


def latents(step: int) -> torch.Tensor:
    return torch.full((1, 4), float(step))


YES, NO, OTHER = (torch.full((1, 4), value) for value in (10.0, 20.0, 30.0))


def called(step: int, text: torch.Tensor, **more: Any) -> dict[str, Any]:
    return {"hidden_states": latents(step), "timestep": torch.tensor([step]), "text": text, **more}


def test_a_batch_of_both_is_halved() -> None:
    models = [Denoiser(), Denoiser()]
    call = {"hidden_states": torch.zeros(2, 4), "timestep": torch.tensor(1), "text": torch.cat([YES, NO])}
    made = Members().run(lambda member: steps(member, models[member.rank], lambda step: [call], 2))
    assert made == [["a batch", "a batch"]] * 2
    assert [model.texts for model in models] == [[10.0, 10.0], [20.0, 20.0]]


def test_lists_are_halved_by_their_items_where_the_latents_are_one() -> None:
    latent, text = [torch.zeros(2, 4), torch.ones(2, 4)], [YES, NO]
    assert halved(latent, 2, 1, by_list=True) == [latent[1]]
    assert torch.equal(halved(latent, 2, 1, by_list=False)[0], latent[0][1:])
    whole = joined(([latent[0]],), ([latent[1]],), 2, by_list=True)
    assert [each.data_ptr() for each in whole[0]] == [each.data_ptr() for each in latent]

    def act(member: Member) -> Any:
        branches = Branches(model := Denoiser(), member, 1)
        plan = branches.plan((latent, None, text), {})
        assert plan is not None
        (result,) = branches.made(plan, model)
        return [float(each[0, 0]) for each in result[0]], model.texts

    assert Members().run(act) == [([10.0, 21.0], [10.0]), ([10.0, 21.0], [20.0])]


def test_calls_in_turn_are_seen_in_the_first_step_and_shared_from_the_second() -> None:
    models = [Denoiser(), Denoiser()]
    both = lambda step: [called(step, YES), called(step, NO)]
    made = Members().run(lambda member: steps(member, models[member.rank], both, 3))
    assert made == [["whole", "whole", *["in turn", "known"] * 2]] * 2
    assert [model.texts for model in models] == [[10.0, 20.0, 10.0, 10.0], [10.0, 20.0, 20.0, 20.0]]


def test_a_third_call_of_a_step_is_made_whole() -> None:
    three = lambda step: [called(step, text) for text in (YES, NO, OTHER)]
    made = Members().run(lambda member: steps(member, Denoiser(), three, 3))
    assert made == [["whole"] * 3 + ["in turn", "known", "whole"] * 2] * 2


def test_another_call_than_the_one_that_was_guessed_is_made_as_it_is() -> None:
    """The second branch is left out of a step, gets another text, or other latents: nothing of it is taken."""

    def calls(step: int) -> list[dict[str, Any]]:
        second = {
            2: [],
            4: [called(step, OTHER)],
            6: [{**called(step, NO), "hidden_states": latents(step) + 0.5}],
            8: [called(step, NO, strength=2)],
        }
        return [called(step, YES), *second.get(step, [called(step, NO)])]

    for rank in Members().run(lambda member: steps(member, Denoiser(), calls, 10)):
        assert not isinstance(rank, Exception), rank
        assert rank.count("known") < rank.count("in turn")


def test_one_member_that_sees_it_otherwise_is_enough_for_both() -> None:
    """Texts that differ in a bit between two cards: what one cannot guess, the other does not."""

    def calls(rank: int) -> Callable[[int], list[dict[str, Any]]]:
        odd = lambda step: NO + 1e-3 * rank * (step == 1)
        return lambda step: [called(step, YES), called(step, odd(step))]

    made = Members().run(lambda member: steps(member, Denoiser(), calls(member.rank), 3))
    assert made[0] == made[1] == ["whole", "whole", "in turn", "whole", "in turn", "known"]


def test_latents_that_are_written_into_between_two_calls_are_seen() -> None:
    def act(member: Member) -> list[Any]:
        branches = Branches(model := Denoiser(), member, 1)
        for text in (YES, NO):
            branches.watch((), call := called(0, text), model(**call))
        call = called(1, YES)
        plan = branches.plan((), call)
        assert plan is not None
        branches.expect(plan, branches.made(plan, model)[1])
        call["hidden_states"] += 1
        return [branches.known((), {**call, "text": NO})]

    assert Members().run(act) == [[None], [None]]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_part_that_fails_is_an_error_in_both(failing: int) -> None:
    def act(member: Member) -> None:
        branches = Branches(model := Denoiser(), member, 1)
        plan = branches.plan((), {"hidden_states": torch.zeros(2, 4), "text": torch.cat([YES, NO])})
        assert plan is not None

        def call(**more: Any) -> Any:
            if member.rank == failing:
                raise ValueError("no")
            return model(**more)

        branches.made(plan, call)

    errors = Members().run(act)
    assert isinstance(errors[failing], ValueError)
    assert isinstance(errors[1 - failing], OtherFailedError)


def test_without_guidance_there_is_no_plan() -> None:
    single = lambda step: [called(step, YES)]
    assert Members().run(lambda member: steps(member, Denoiser(), single, 4)) == [["whole"] * 4] * 2
