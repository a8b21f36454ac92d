"""On a worker's Python path, this makes the folder of the pack the package `fastdiffusers`, whatever it is called."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_folder = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location(
    "fastdiffusers", _folder / "__init__.py", submodule_search_locations=[str(_folder)]
)
if _spec is None or _spec.loader is None:
    raise ImportError(f"{_folder} cannot be imported")
sys.modules["fastdiffusers"] = _module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
