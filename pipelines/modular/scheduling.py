"""What the blocks of a modular pipeline ask of their scheduler, read from their source as that of other classes is."""

from __future__ import annotations

import ast
import copy
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from ..classes.scheduling import Branches, SchedulerUse, is_scheduler, source_of, use_in
from .blocks import LEAST, default_blocks, running_blocks

_PARTS = "diffusers.modular_pipelines."
_BASES = (f"{_PARTS}modular_pipeline", f"{_PARTS}modular_pipeline_utils")
_OWNERS = ("components", "comp", "pipeline")
"""What the methods of blocks call the pipeline, whose scheduler they drive."""
_SETS_TIMESTEPS = "retrieve_timesteps"


@lru_cache(maxsize=128)
def use_of_blocks(pipeline_class: type, given: tuple[str, ...] = ()) -> SchedulerUse:
    """How the blocks that run drive the scheduler.

    Args:
        pipeline_class: a modular pipeline class.
        given: inputs beside the prompt, which decide what blocks run: "image", "mask_image" ...
    """
    running = running_blocks(default_blocks(pipeline_class), {**LEAST, **dict.fromkeys(given, True)})
    kinds = dict.fromkeys(type(block) for block in _all_blocks(running))
    trees: list[ast.AST] = []
    seen: set[Any] = set()
    for each in dict.fromkeys(base for kind in kinds for base in kind.__mro__):
        tree = source_of(each) if each.__module__.startswith(_PARTS) and each.__module__ not in _BASES else None
        if tree is not None:
            trees.append(own := _as_method(tree))
            trees += _helpers(own, each.__module__, seen)
    use = use_in([node for tree in trees for node in ast.walk(tree)])
    # Timesteps are handed on where a caller has some; no run here has.
    return replace(use, timestep_arguments=tuple(name for name in use.timestep_arguments if name != "timesteps"))


def _all_blocks(block: Any) -> Iterator[Any]:
    yield block
    for each in (getattr(block, "sub_blocks", None) or {}).values():
        yield from _all_blocks(each)


def _helpers(tree: ast.AST, module: str, seen: set[Any]) -> list[ast.AST]:
    """The functions beside a class that it hands its scheduler to, and those that they hand it to."""
    found: list[ast.AST] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id == _SETS_TIMESTEPS:
            continue
        given = [*node.args, *(word.value for word in node.keywords)]
        function: Any = getattr(sys.modules.get(module), node.func.id, None)
        if inspect.isfunction(function) and function not in seen and any(map(is_scheduler, given)):
            seen.add(function)
            own = _as_method(ast.parse(textwrap.dedent(inspect.getsource(function))))
            found += [own, *_helpers(own, function.__module__, seen)]
    return found


def _as_method(tree: ast.AST) -> ast.AST:
    """The code of a block as if the scheduler were its own, as that of other pipelines is."""
    rewritten: ast.AST = _Rewritten().visit(copy.deepcopy(tree))
    branched: ast.AST = Branches().visit(rewritten)
    return branched


class _Rewritten(ast.NodeTransformer):
    """`components.scheduler` and `scheduler` become `self.scheduler`, `block_state.sigmas` becomes `sigmas`."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id == "block_state":
            return ast.copy_location(ast.Name(node.attr, node.ctx), node)
        if isinstance(node.value, ast.Name) and node.value.id in _OWNERS and node.attr == "scheduler":
            return _own_scheduler(node)
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return _own_scheduler(node) if node.id == "scheduler" else node


def _own_scheduler(node: ast.Name | ast.Attribute) -> ast.AST:
    owner = ast.copy_location(ast.Name("self", ast.Load()), node)
    return ast.copy_location(ast.Attribute(owner, "scheduler", node.ctx), node)
