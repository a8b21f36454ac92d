"""What a pipeline class asks of its scheduler, read from its source: enough to tell which others can take its place."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_TAKES_TIMESTEPS = ("timesteps", "sigmas", "mu")
_USUAL = (*_TAKES_TIMESTEPS, "scheduler", "steps", "num_inference_steps", "device")


@dataclass(frozen=True)
class SchedulerUse:
    """How a class drives its scheduler.

    Attributes:
        timestep_arguments: what it hands to `set_timesteps` besides the number of steps.
        further_arguments: keywords that it gives to `set_timesteps` beyond the usual ones, whatever their value.
        sigmas_as_array: its sigmas are a numpy array; some schedulers cannot compute with a list.
        own_noise_levels: its sigmas do not go down from 1 in equal steps, or its frames step each with a copy.
        own_flow_sigmas: leaves the sigmas to a scheduler that is configured with `use_flow_sigmas`.
        shifts_dynamically: hands over "mu" where the scheduler is configured with `use_dynamic_shifting`.
        attributes: of the scheduler that it uses without asking whether they are there.
        step_arguments: keywords of its calls of `step`.
        empty_eta: it gives None as `eta` to steps that take one.
        step_results: fields of what `step` returns.
        most_results: how many values it takes from what `step` returns.
        only: classes outside which it raises an error.
    """

    timestep_arguments: tuple[str, ...] = ()
    further_arguments: tuple[str, ...] = ()
    sigmas_as_array: bool = False
    own_noise_levels: bool = False
    own_flow_sigmas: bool = False
    shifts_dynamically: bool = False
    attributes: tuple[str, ...] = ()
    step_arguments: tuple[str, ...] = ()
    empty_eta: bool = False
    step_results: tuple[str, ...] = ()
    most_results: int = 1
    only: tuple[str, ...] = ()


@lru_cache(maxsize=1024)  # more than diffusers has classes: a scan of them all would push out what the next one asks
def scheduler_use(pipeline_class: type) -> SchedulerUse:
    """How the methods of a class, and of its bases in the same part of diffusers, drive `self.scheduler`."""
    return use_in([node for tree in _sources(pipeline_class) for node in ast.walk(tree)])


def use_in(nodes: list[ast.AST]) -> SchedulerUse:
    """How code drives `self.scheduler`."""
    calls = list(_timestep_calls(nodes))
    asked = {node.args[1].value for node in nodes if _is_has_attribute(node)}  # type: ignore[attr-defined]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute) and is_scheduler(node.value)}
    steps = [node for node in nodes if isinstance(node, ast.Call) and _is_scheduler_method(node.func, "step")]
    return SchedulerUse(
        timestep_arguments=_timestep_arguments(nodes, calls),
        further_arguments=tuple(sorted({name for words in calls for name in words} - set(_USUAL))),
        sigmas_as_array=any(_makes_array(node) for node in nodes),
        own_noise_levels=any(_rises(node) or _copies(node) for node in nodes),
        own_flow_sigmas=_mentioned("use_flow_sigmas", nodes),
        shifts_dynamically=_mentioned("use_dynamic_shifting", nodes),
        attributes=tuple(sorted(used - asked - {"step", "register_to_config"})),
        step_arguments=tuple(sorted({word.arg for call in steps for word in call.keywords if word.arg})),
        empty_eta=any(_leaves_eta_empty(node) for node in nodes),
        step_results=tuple(
            sorted({node.attr for node in nodes if isinstance(node, ast.Attribute) and node.value in steps})
        ),
        most_results=max((_results(node, steps) for node in nodes), default=1),
        only=tuple(sorted({name for node in nodes if isinstance(node, ast.If) for name in _only(node)})),
    )


def objection(use: SchedulerUse, scheduler: Any) -> str:
    """Why a class cannot drive a scheduler whose timesteps are set, "" when it can: two steps of noise are tried.

    Args:
        scheduler: its state is changed.
    """
    import diffusers
    import torch

    if use.only and not isinstance(scheduler, tuple(getattr(diffusers, name) for name in use.only)):
        return f"it takes none but {', '.join(use.only)}"
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    for name in use.further_arguments:
        if name not in accepted:
            return f"the pipeline gives it {name!r}, which it does not take"
    for name in use.attributes:
        if not hasattr(scheduler, name):
            return f"the pipeline uses its {name!r}, which it does not have"
    accepted = inspect.signature(scheduler.step).parameters
    for name in use.step_arguments:
        if name not in accepted:
            return f"the pipeline gives {name!r} to its steps, which they do not take"
    if use.own_noise_levels:
        return "the pipeline computes the noise levels of its own scheduler alone"
    further = {"eta": None} if use.empty_eta and "eta" in accepted else {}
    noise = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 3, 8, 8, generator=noise)
    learned = str(scheduler.config.get("variance_type")).startswith("learned")  # the model gives the variance as well
    output_shape = (1, 6 if learned else 3, 8, 8)
    for timestep in scheduler.timesteps[:2]:
        if "scale_model_input" in use.attributes:
            scheduler.scale_model_input(sample, timestep)
        output = scheduler.step(torch.randn(output_shape, generator=noise), timestep, sample, **further)
        for name in use.step_results:
            if not hasattr(output, name):
                return f"the pipeline wants {name!r} of its steps, which they do not give"
        if len(output) < use.most_results:
            return "the pipeline wants more of its steps than they give"
        sample = output[0]
    return "" if bool(sample.isfinite().all()) else "its steps end in NaN or infinity"


class Branches(ast.NodeTransformer):
    """Leaves out what is done for one class of scheduler alone."""

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        if _is_instance_test(node.test):
            node.body = [ast.Pass()]
        elif isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not):
            node.orelse = [] if _is_instance_test(node.test.operand) else node.orelse
        return node


def _is_instance_test(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and _name(node.func) == "isinstance" and is_scheduler(node.args[0])


def _sources(pipeline_class: type) -> Iterator[ast.AST]:
    for each in pipeline_class.__mro__:
        if "diffusers.pipelines." in f"{each.__module__}." and "pipeline_utils" not in each.__module__:
            tree = source_of(each)
            if tree is not None:
                yield tree


def source_of(each: type) -> ast.AST | None:
    """The code of a class without that of its bases; None where it is not to be had."""
    try:
        return _classes(each.__module__).get(each.__qualname__)
    except (OSError, TypeError):
        return None


@lru_cache(maxsize=8)
def _classes(module: str) -> dict[str, ast.AST]:
    """The classes of a module by name, without the branches for one class of scheduler.

    Raises:
        OSError, TypeError: its source is not to be had.
    """
    found: dict[str, ast.AST] = {}
    waiting: list[ast.AST] = [ast.parse(inspect.getsource(sys.modules.get(module)))]  # type: ignore[arg-type]
    for node in waiting:
        if isinstance(node, ast.ClassDef):
            found.setdefault(node.name, Branches().visit(node))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            within = ast.iter_child_nodes(node)
            waiting.extend(each for each in within if isinstance(each, ast.stmt | ast.ExceptHandler))
    return found


def _name(node: ast.AST) -> str:
    """Of a plain name, "" of all else."""
    return node.id if isinstance(node, ast.Name) else ""


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else _name(node)


def _mentioned(word: str, nodes: list[ast.AST]) -> bool:
    """Whether a word is part of any name or text."""
    fields = ("attr", "id", "arg", "name", "value")
    return any(
        isinstance(text := getattr(node, field, None), str) and word in text for node in nodes for field in fields
    )


def _copies(node: ast.AST) -> bool:
    """`deepcopy(self.scheduler)`"""
    if not isinstance(node, ast.Call) or not _last_name(node.func).endswith("deepcopy"):
        return False
    return len(node.args) == 1 and not node.keywords and is_scheduler(node.args[0])


def _leaves_eta_empty(node: ast.AST) -> bool:
    """`self.prepare_extra_step_kwargs(generator, None)`"""
    if not isinstance(node, ast.Call) or not _last_name(node.func).endswith("prepare_extra_step_kwargs"):
        return False
    return not node.keywords and [ast.unparse(each) for each in node.args] == ["generator", "None"]


def is_scheduler(node: ast.AST) -> bool:
    """Whether a node is `self.scheduler`."""
    return isinstance(node, ast.Attribute) and node.attr == "scheduler" and _name(node.value) == "self"


def _is_scheduler_method(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == name and is_scheduler(node.value)


def _is_has_attribute(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and _name(node.func) in ("hasattr", "getattr")
        and len(node.args) > 1
        and is_scheduler(node.args[0])
        and isinstance(node.args[1], ast.Constant)
    )


def _timestep_arguments(nodes: list[ast.AST], calls: list[dict[str, ast.expr]]) -> tuple[str, ...]:
    """Of the calls of `set_timesteps`, its own or that of `retrieve_timesteps`, those that are more than None."""
    computed = {
        target.id
        for node in nodes
        if isinstance(node, ast.Assign) and not (isinstance(node.value, ast.Constant) and node.value.value is None)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = set()
    for words in calls:
        for name in _TAKES_TIMESTEPS:
            value = words.get(name)
            nothing = value is None or (isinstance(value, ast.Constant) and value.value is None)
            if not nothing and (not isinstance(value, ast.Name) or value.id in computed - {"timesteps"}):
                found.add(name)
    return tuple(sorted(found))


def _timestep_calls(nodes: list[ast.AST]) -> Iterator[dict[str, ast.expr]]:
    """The arguments of each call that sets timesteps, by name."""
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        words = {word.arg: word.value for word in node.keywords if word.arg}
        for name in (word.value.id for word in node.keywords if not word.arg and isinstance(word.value, ast.Name)):
            words |= _dictionary(name, nodes)
        if _last_name(node.func).endswith("retrieve_timesteps"):
            yield words | dict(zip(("scheduler", "steps", "device", "timesteps", "sigmas"), node.args, strict=False))
        elif _is_scheduler_method(node.func, "set_timesteps"):
            yield words


def _rises(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or _name(node.targets[0]) not in ("sigmas", "sigmas_dtype"):
        return False
    return "linspace(0" in ast.unparse(node.value)


def _dictionary(name: str, nodes: list[ast.AST]) -> dict[str, ast.expr]:
    """The entries of the dictionary that is assigned to a name: `scheduler_kwargs = {"mu": mu}`."""
    found: dict[str, ast.expr] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and _name(node.targets[0]) == name:
            keys = (key.value if isinstance(key, ast.Constant) else None for key in node.value.keys)
            found |= {str(key): value for key, value in zip(keys, node.value.values, strict=True) if key}
    return found


def _makes_array(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or _name(node.targets[0]) != "sigmas":
        return False
    text = ast.unparse(node.value)
    return ("linspace" in text or text.startswith("np.array")) and "tolist" not in text


def _results(node: ast.AST, steps: list[ast.Call]) -> int:
    """How many of a step's results a node takes: `step(...)[1]`, `a, b = step(...)`."""
    if isinstance(node, ast.Subscript) and node.value in steps and isinstance(node.slice, ast.Constant):
        return int(node.slice.value) + 1 if isinstance(node.slice.value, int) else 1
    if isinstance(node, ast.Assign) and node.value in steps and isinstance(node.targets[0], ast.Tuple):
        return len(node.targets[0].elts)
    return 1


def _only(node: ast.If) -> Iterator[str]:
    """The classes of `if not isinstance(self.scheduler, ...): raise ...`."""
    test = node.test
    if not isinstance(test, ast.UnaryOp) or not isinstance(test.op, ast.Not) or not isinstance(test.operand, ast.Call):
        return
    call = test.operand
    if not _is_instance_test(call):
        return
    if any(isinstance(inside, ast.Raise) for inside in node.body):
        for name in ast.walk(call.args[1]):
            if isinstance(name, ast.Name):
                yield name.id
