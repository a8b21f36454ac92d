"""The doors of the house: who may import whom, checked on the syntax trees of all source files.

`nodes -> cluster -> comparison -> pipelines -> optimizations`, `nodes -> engines -> pipelines`, `nodes -> vae`,
`pipelines -> vae`, never backwards; only `nodes/` knows ComfyUI, only `cluster/` Ray, and only `engines/` a server.
Within a room, the wings (its subfolders) have doors of their own, and no imports go in a circle.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACK = Path(__file__).resolve().parents[2]
GROUND = {"errors", "callbacks", "processor_threads", "report"}
LEAVES = GROUND | {
    "fallback",
    "memory",
    "cache_folder",
    "compile_clock",
    "compile_stop",
    "links",
    "safetensors_header",
    "torchvision_ops",
}
ROOMS = {
    "nodes",
    "commands",
    "cluster",
    "engines",
    "comparison",
    "pipelines",
    "optimizations",
    "vae",
    "scripts",
    "benchmarks",
}

MAY_IMPORT = {
    **{leaf: set() for leaf in GROUND},
    **dict.fromkeys(LEAVES - GROUND, GROUND),
    "__init__": {"nodes"},
    "__main__": {"cli"},
    "optimizations": LEAVES,
    "vae": LEAVES,
    "pipelines": LEAVES | {"optimizations", "vae"},
    "comparison": LEAVES | {"pipelines", "optimizations"},
    "cluster": LEAVES | {"comparison", "pipelines", "optimizations"},
    "engines": LEAVES | {"pipelines", "optimizations"},
    "nodes": LEAVES | {"cluster", "engines", "comparison", "pipelines", "optimizations", "vae"},
    "commands": LEAVES | {"cluster", "engines", "comparison", "pipelines", "optimizations", "vae", "__init__"},
    "cli": LEAVES | {"commands", "__init__"},
    "benchmarks": LEAVES
    | {"nodes", "cluster", "comparison", "pipelines", "optimizations", "vae", "commands", "__init__"},
    "scripts": LEAVES
    | {"benchmarks", "cluster", "comparison", "pipelines", "optimizations", "vae", "commands", "__init__"},
}
OWN_ROOM = {
    "pipelines/tiny": set(),
    "pipelines/classes": {"families"},
    "pipelines/loading": {"families", "modular", "recognize", "tiny", "types"},
    "pipelines/modular": {"classes", "families", "types"},
    "pipelines/conditions": {"classes", "decoding", "families", "latents", "loading", "modular", "tiny", "types"},
    "pipelines/decoding": {"families", "latents", "types"},
    "optimizations": {"caching", "quantization"},
    "optimizations/tuning": {"apply", "compile", "compile_cost", "components", "offload", "settings"},
    "optimizations/caching": {"components", "settings"},
    "optimizations/quantization": {"components", "settings"},
    "vae/network": {"config", "kernels", "settings"},
    "vae/kernels": set(),
    "nodes/host": {"vae_choices"},
    "nodes/conditions": {"host", "pictures", "types"},
    "commands/launch": {"files"},
    "commands/conditions": {"media", "options", "videos"},
    "commands/plan": set(),
    "commands/videos": set(),
    "commands/comparing": {"libraries", "media", "options"},
    "cluster/path": set(),
    "cluster/child": {"batch", "connection", "drive", "events", "fleet", "parcel", "places", "schedule", "settings"},
    "cluster/parallel": {"batch", "child", "connection", "parcel", "settings", "worker"},
    "commands/prompts": {
        *("conditions", "declared", "files", "keeping", "latent_file", "libraries", "media", "options", "videos"),
    },
}
"""What a wing imports of its own room: modules and other wings. A room by name: which of its wings its own modules do.

So the tiny pipelines and the kernels stand alone, nothing that decodes loads, the network knows nothing of the planner
and the engine that run it, and no optimization knows that it is measured."""
MOST_MODULES = 18
MOST_LINES = 300
LONG_TABLES = {"pipelines/families.py"}
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
MAY_START_PROCESSES = {"cluster", "commands", "benchmarks", "scripts"}


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


def module_of(path: Path) -> tuple[str, ...]:
    """("pipelines", "tiny", "flux"); of a package its folder."""
    parts = path.relative_to(PACK).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def modules_imported(tree: ast.AST, path: Path) -> Iterator[tuple[tuple[str, ...], int]]:
    """(module of the pack, line) of each relative import, those for the type checker alone included."""
    folder = path.relative_to(PACK).parts[:-1]
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not 0 < node.level <= len(folder) + 1:
            continue
        base = (*folder[: len(folder) + 1 - node.level], *(node.module.split(".") if node.module else ()))
        for alias in node.names:
            inside = PACK.joinpath(*base, alias.name)
            is_module = inside.is_dir() or inside.with_suffix(".py").is_file()
            yield ((*base, alias.name) if is_module else base), node.lineno


def wing_violations(source: str, path: Path) -> list[str]:
    """Every door between the wings of a room that a file breaks, one line each."""
    *folder, _ = path.relative_to(PACK).parts
    allowed = OWN_ROOM.get("/".join(folder))
    found = []
    for module, line in modules_imported(ast.parse(source), path) if allowed is not None else ():
        is_own = list(module[: len(folder)]) == folder
        if module[0] != folder[0] or (is_own and len(folder) > 1) or len(module) < 2:
            continue
        into_a_wing = "/".join(module[:2]) in OWN_ROOM
        if module[1] not in allowed and (into_a_wing or len(folder) > 1):
            found.append(f"{line}: {'/'.join(folder)} may not import {'.'.join(module)}")
    return found


def circles(graph: Mapping[tuple[str, ...], set[tuple[str, ...]]]) -> list[set[tuple[str, ...]]]:
    """The groups of modules that reach each other."""
    reached: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for start in graph:
        seen: set[tuple[str, ...]] = set()
        waiting = [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        reached[start] = seen
    groups = [{other for other in seen if start in reached.get(other, ())} for start, seen in reached.items()]
    return [group for number, group in enumerate(groups) if group and group not in groups[:number]]


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
        if kind == "outside" and module == "http" and room not in ("engines", "scripts"):
            found.append(f"{line}: only engines talks to servers ({module})")
        if kind == "outside" and module == "ray" and room != "cluster":
            found.append(f"{line}: only cluster imports Ray")
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


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACK)))
def test_a_file_keeps_to_the_doors_of_its_wing(path: Path) -> None:
    assert wing_violations(path.read_text(encoding="utf-8"), path) == []


def test_nothing_imports_in_a_circle() -> None:
    graph = {}
    for path in sources():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[module_of(path)] = {module for module, _ in modules_imported(tree, path)} - {module_of(path)}
    assert circles(graph) == []


def test_a_circle_is_noticed() -> None:
    a, b, c, d = (("room", name) for name in "abcd")
    assert circles({a: {b}, b: {c}, c: {d}, d: {b}}) == [{b, c, d}]
    assert circles({a: {b, c}, b: {d}, c: {d}, d: set()}) == []


def test_no_folder_holds_too_many_modules() -> None:
    counts = Counter(path.parent for path in sources() if path.stem != "__init__")
    counted = {str(folder.relative_to(PACK)): count for folder, count in counts.items()}
    counted.pop("benchmarks")
    assert {name: count for name, count in counted.items() if count > MOST_MODULES} == {}


def test_no_file_is_too_long() -> None:
    lengths = {
        str(path.relative_to(PACK)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources()
        if str(path.relative_to(PACK)) not in LONG_TABLES
    }
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pipelines/tiny/x.py", "from ..decoding.streaming import refuse_streaming"),
        ("pipelines/tiny/x.py", "from ..families import family_of"),
        ("pipelines/tiny/x.py", "from .. import loading"),
        ("pipelines/decoding/x.py", "def f():\n    from ..loading import loader"),
        ("pipelines/decoding/x.py", "from ..generate import generate"),
        ("vae/network/x.py", "from ..planner import plan"),
        ("vae/network/x.py", "if TYPE_CHECKING:\n    from ..engine import Engine"),
        ("vae/kernels/x.py", "from ..network.model import VideoVAE"),
        ("optimizations/x.py", "from .tuning.store import default_store"),
        ("optimizations/caching/x.py", "from ..tuning import decide"),
        ("optimizations/tuning/x.py", "from ..attention import use"),
        ("nodes/host/x.py", "from ..sampler import Sampler"),
    ],
)
def test_a_breach_between_wings_is_noticed(file: str, source: str) -> None:
    assert len(wing_violations(source, PACK / file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("pipelines/tiny/x.py", "from .components import WIDTH\nfrom ...errors import InputError"),
        ("pipelines/loading/x.py", "from ..tiny import build\nfrom ...optimizations.settings import Workload"),
        ("pipelines/x.py", "from .decoding import pipeline_vae\nfrom .loading import loader\nfrom . import types"),
        ("optimizations/x.py", "from .settings import Workload\nfrom .quantization.sdnq import sdnq_limits"),
        ("vae/network/x.py", "from ..kernels import Kernels\nfrom .strips import Span\nfrom . import padding"),
    ],
)
def test_what_is_allowed_between_wings_passes(file: str, source: str) -> None:
    assert wing_violations(source, PACK / file) == []


def test_the_map_is_the_real_tree() -> None:
    text = (PACK / "CONTRIBUTING.md").read_text(encoding="utf-8")
    house = text.split("## The house")[1].split("```")[1]
    drawn, room = set(), ""
    for line in filter(str.strip, house.splitlines()):
        indent, names = re.findall(r"^( *)(\S+(?: \S+/| +\S+\.py)*)", line)[0]
        for name in names.split():
            room = name if name.endswith("/") and not indent else room
            drawn.add(f"{room if indent else ''}{name}".rstrip("/"))
    there = {path.relative_to(PACK).parts for path in sources()}
    folders = {"/".join(parts[:-1]) for parts in there if 1 < len(parts) < 4}
    modules = {parts[0] for parts in there if len(parts) == 1}
    assert drawn - {"tests", "locales", "web", "example_workflows"} == folders | modules
    named = re.findall(r"`([\w/]+/\w+\.(?:py|json))`", text)
    assert [name for name in named if not (PACK / name).is_file()] == []


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
        ("commands/x.py", "import ray"),
        ("nodes/x.py", "import http.client"),
        ("engines/x.py", "from ..cluster.settings import ClusterSettings"),
        ("pipelines/x.py", "from ..engines.settings import Engine"),
        ("pipelines/x.py", "from ..cluster.settings import ClusterSettings"),
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
