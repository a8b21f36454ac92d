"""The engine without ComfyUI.

`python FOLDER COMMAND` runs the command line of the pack in FOLDER, installed or not: in ComfyUI's own Python after a
`git clone` into custom_nodes, say. `python -m fastdiffusers COMMAND` does so where it is installed with pip.
`python FOLDER benchmarks.NAME` and `python FOLDER scripts.NAME` run what a clone has beside the package.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import runpy
import sys

NAME = "fastdiffusers"
BESIDE = re.compile(r"(benchmarks|scripts)\.[a-z]\w*")


def main() -> int:
    """Run the command line, or a module that lies beside it, and return the exit status."""
    try:
        if len(sys.argv) > 1 and BESIDE.fullmatch(sys.argv[1]):
            return run_module(sys.argv.pop(1))
        from .cli import main as command_line

        return command_line()
    except KeyboardInterrupt:  # while modules are imported: from then on the command line looks after it
        sys.stderr.write(f"{NAME}: cancelled\n")
        return 130


def run_module(name: str) -> int:
    """Run `benchmarks.NAME` or `scripts.NAME` as a program."""
    try:
        found = importlib.util.find_spec(f"{NAME}.{name}")
    except ModuleNotFoundError:
        found = None
    if found is None:
        sys.stderr.write(f"{NAME}: there is no {name} here. Run `python FOLDER {name}` with the folder of a clone.\n")
        return 2
    runpy.run_module(f"{NAME}.{name}", run_name="__main__", alter_sys=True)
    return 0


def import_by_path(folder: str) -> None:
    """Make the folder of this file the package `fastdiffusers`, whatever the folder is called."""
    # The folder comes first on Python's path, and its `nodes`, `scripts` and `vae` would hide others' modules.
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or os.curdir) != os.path.realpath(folder)]
    spec = importlib.util.spec_from_file_location(
        NAME, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} cannot be imported")
    sys.modules[NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


if not __package__:
    import_by_path(os.path.dirname(os.path.abspath(__file__)))
    main = importlib.import_module(f"{NAME}.__main__").main

if __name__ == "__main__":
    sys.exit(main())
