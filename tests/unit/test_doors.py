"""The doors of the house: who may import whom, checked on the syntax trees of all source files.

`nodes -> comparison -> pipelines -> optimizations`, `nodes -> vae`, `pipelines -> vae`, never backwards; only `nodes/`
knows ComfyUI.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
GROUND = {"errors", "callbacks", "report"}
LEAVES = GROUND | {"fallback", "memory", "compile_clock"}
ROOMS = {"nodes", "comparison", "pipelines", "optimizations", "vae", "commands", "scripts", "benchmarks"}

MAY_IMPORT = {
    **{leaf: set() for leaf in GROUND},
    **dict.fromkeys(LEAVES - GROUND, GROUND),
    "__init__": {"nodes"},
    "__main__": {"cli"},
    "optimizations": LEAVES,
    "vae": LEAVES,
    "pipelines": LEAVES | {"optimizations", "vae"},
    "comparison": LEAVES | {"pipelines", "optimizations"},
    "nodes": LEAVES | {"comparison", "pipelines", "optimizations", "vae"},
    "commands": LEAVES | {"comparison", "pipelines", "optimizations", "vae", "__init__"},
    "cli": LEAVES | {"commands", "__init__"},
    "benchmarks": LEAVES | {"comparison", "pipelines", "optimizations", "vae", "commands", "__init__"},
    "scripts": LEAVES | {"comparison", "pipelines", "optimizations", "vae", "commands", "__init__"},
}
COMFYUI = {
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
MAY_PRINT = {"cli", "commands", "benchmarks", "scripts"}
MAY_START_PROCESSES = {"commands", "benchmarks", "scripts"}


def sources() -> list[Path]:
    """Every Python file of the pack itself."""
    files = [*PACK.glob("*.py")]
    for room in ROOMS:
        files += (PACK / room).rglob("*.py")
    return sorted(files)


def room_of(path: Path) -> str:
    """The folder a file lives in; a file at the root is a room of its own."""
    relative = path.relative_to(PACK)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, str, int]]:
    """(kind, module, line) of each import: kind "pack" names a room, kind "outside" a top-level package."""
    depth = len(path.relative_to(PACK).parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield "outside", alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield "outside", (node.module or "").split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level < depth:
            yield "pack", room_of(path), node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            if node.module:
                yield "pack", node.module.split(".")[0], node.lineno
                continue
            for alias in node.names:  # `from .. import x`: a room, a root module, or a name of the root __init__
                exists = (PACK / alias.name).is_dir() or (PACK / f"{alias.name}.py").is_file()
                yield "pack", alias.name if exists else "__init__", node.lineno
        elif isinstance(node, ast.ImportFrom):
            yield "outside", "beyond the pack's root", node.lineno


def without_type_checking(tree: ast.Module) -> ast.Module:
    """The tree without its `if TYPE_CHECKING:` blocks, whose imports never run."""

    class Remover(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            self.generic_visit(node)
            guarded = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return (node.orelse or ast.Pass()) if guarded else node

    return Remover().visit(tree)


def violations(source: str, path: Path) -> list[str]:
    """Every rule of the house that a file breaks, one line each."""
    tree = ast.parse(source)
    room = room_of(path)
    found = []
    for kind, module, line in imports(tree, path):
        if kind == "outside" and module in ("fastdiffusers", "beyond the pack's root"):
            found.append(f"{line}: imports inside the pack are relative")
        if kind == "pack" and module != room and module not in MAY_IMPORT[room]:
            found.append(f"{line}: {room} may not import {module}")
        if kind == "outside" and room == "vae" and module in ("diffusers", "transformers", "accelerate"):
            found.append(f"{line}: vae stands alone, without {module}")
        if kind == "outside" and module in ("pickle", "dill", "cloudpickle", "joblib", "marshal"):
            found.append(f"{line}: {module} can run code from a file")
        if kind == "outside" and module == "subprocess" and room not in MAY_START_PROCESSES:
            found.append(f"{line}: the engine and the nodes start no processes")
    for kind, module, line in imports(without_type_checking(ast.parse(source)), path):
        if kind == "outside" and module in COMFYUI and room != "nodes":
            found.append(f"{line}: only nodes imports ComfyUI ({module})")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found += call_violations(node, room)
    return found


def call_violations(node: ast.Call, room: str) -> list[str]:
    name = ast.unparse(node.func)
    if name in ("eval", "exec", "os.system", "os.popen"):
        return [f"{node.lineno}: {name} is banned"]
    if name == "print" and room not in MAY_PRINT:
        return [f"{node.lineno}: print belongs to the command line; use logging"]
    if name == "torch.load":
        safe = any(
            k.arg == "weights_only" and isinstance(k.value, ast.Constant) and k.value.value for k in node.keywords
        )
        return [] if safe else [f"{node.lineno}: torch.load without weights_only=True"]
    return []


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACK)))
def test_a_file_keeps_the_rules(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8"), path) == []


def test_all_rooms_are_looked_at() -> None:
    looked_at = {room_of(path) for path in sources()}
    assert looked_at >= {"__init__", "cli", "commands", "optimizations", "pipelines", "vae"} | LEAVES


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("optimizations/x.py", "from ..pipelines.types import LoadKey"),
        ("optimizations/x.py", "from ..vae import decode"),
        ("vae/kernels/x.py", "from ...optimizations.settings import Workload"),
        ("vae/x.py", "def f():\n    import diffusers"),
        ("pipelines/x.py", "from ..nodes.types import Pipeline"),
        ("pipelines/x.py", "from .. import nodes"),
        ("pipelines/x.py", "from ..comparison.choices import parse"),
        ("pipelines/x.py", "import comfy.model_management"),
        ("commands/x.py", "import folder_paths"),
        ("errors.py", "from .callbacks import Progress"),
        ("vae/x.py", "import fastdiffusers.errors"),
        ("vae/x.py", "from ... import outside"),
        ("vae/x.py", "print('loaded')"),
        ("nodes/x.py", "import subprocess"),
        ("nodes/x.py", "eval('1')"),
        ("vae/x.py", "import pickle"),
        ("vae/x.py", "torch.load(path)"),
        ("vae/x.py", "torch.load(path, weights_only=False)"),
    ],
)
def test_a_breach_is_noticed(file: str, source: str) -> None:
    assert len(violations(source, PACK / file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("nodes/x.py", "import comfy.utils\nfrom ..pipelines.generate import generate\nfrom . import types"),
        (
            "pipelines/x.py",
            "from ..optimizations.apply import apply\nfrom ..vae import decode\nfrom ..errors import InputError",
        ),
        ("vae/kernels/x.py", "from ...errors import InputError\nfrom ..blocks import Block\nimport torch"),
        ("__init__.py", "if TYPE_CHECKING:\n    from comfy_api.latest import ComfyExtension"),
        ("vae/x.py", "torch.load(path, weights_only=True)"),
        ("commands/x.py", "print('done')\nfrom .. import __version__"),
    ],
)
def test_what_is_allowed_passes(file: str, source: str) -> None:
    assert violations(source, PACK / file) == []
