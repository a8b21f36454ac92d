"""`fastdiffusers doctor`: what this machine has, which optimizations work on it, and why the others do not."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from . import environment
from .advice import LaunchFacts, launch_advice, read_log
from .libraries import prepare_libraries
from .paths import PACK, find_comfyui, model_folders

HELP = "show what this machine can do, and why not the rest"
LOG_CHARACTERS = 2_000_000
"""Of ComfyUI's log are read; a session's start lies further back only after very long sessions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")


def run(args: argparse.Namespace) -> None:
    prepare_libraries(args.verbose)
    facts = examine()
    print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else as_text(facts))


def examine() -> dict[str, Any]:
    """Everything doctor knows, JSON-compatible; `advice` holds one sentence for each thing worth changing."""
    devices = environment.devices()
    best = devices[0]["device"]
    facts: dict[str, Any] = {
        "versions": environment.package_versions(),
        "system": environment.driver(),
        "devices": devices,
        "best_device": best,
        "attention": attention_backends(best),
        "torch_compile": environment.compiler(best),
        "cudnn": environment.cudnn(),
        "allocator": environment.allocator(),
        "paths": paths(),
    }
    facts["advice"] = advice(facts) + launch_advice(launch_facts(facts))
    return facts


def attention_backends(device: str) -> dict[str, str]:
    """Each attention choice on `device`, in the dtype that would be used there: "" if it works, else why not."""
    import torch

    try:
        from ..optimizations.attention import available
    except ImportError as error:
        return {"all": f"{error.name or error} cannot be imported"}
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return available(torch.device(device), dtype)


def paths() -> dict[str, Any]:
    comfyui = find_comfyui()
    return {
        "pack": str(PACK),
        "comfyui": "" if comfyui is None else str(comfyui),
        "models": {kind: [str(folder) for folder in found] for kind, found in model_folders(comfyui).items()},
        "caches": environment.cache_folders(),
    }


def advice(facts: dict[str, Any]) -> list[str]:
    """What to change on this machine, most important first; empty when there is nothing."""
    found = []
    versions, device = facts["versions"], facts["best_device"]
    if device == "cpu":
        found.append("torch sees no accelerator: install the torch build for your card, or expect long runs")
    if facts["cudnn"]["conv3d_memory_defect"]:
        found.append(
            f"cuDNN {facts['cudnn']['version']} takes about three times the memory for video convolutions in half "
            "precision: pip install -U 'nvidia-cudnn-cu12>=9.15' (nvidia-cudnn-cu13 for CUDA 13)"
        )
    if not facts["torch_compile"]["works"]:
        found.append(f"torch.compile cannot be used: {facts['torch_compile']['reason']}")
    if device.startswith("cuda") and not facts["allocator"]["expandable_segments"]:
        found.append("PYTORCH_ALLOC_CONF=expandable_segments:True makes out-of-memory from fragmentation rarer")
    for package in ("diffusers", "transformers", "accelerate", "safetensors", "peft"):
        if not versions[package]:
            found.append(f"{package} is not installed: pip install -r requirements.txt")
    return found


def launch_facts(facts: dict[str, Any]) -> LaunchFacts:
    """What the advice on starting ComfyUI looks at: the best card, the allocator, the log of the last session."""
    best = facts["devices"][0]
    card = best if best["device"].startswith("cuda") else {}
    capability = tuple(int(part) for part in card["capability"].split(".")) if "capability" in card else None
    return LaunchFacts(
        total=int(card.get("total_gib", 0) * environment.GIB),
        free=int(card.get("free_gib", 0) * environment.GIB),
        capability=None if capability is None else (capability[0], capability[1]),
        allocator_settings=facts["allocator"]["settings"],
        log=read_log(last_log(facts["paths"]["comfyui"])),
        comfy_compiler=has_comfy_compiler(facts["paths"]["comfyui"]),
    )


def has_comfy_compiler(comfyui: str) -> bool:
    """Whether the ComfyUI in that folder, "" for none, knows the switch that turns its own compiler off."""
    options = Path(comfyui, "comfy", "cli_args.py")
    return bool(comfyui) and options.is_file() and "--disable-comfy-compiler" in options.read_text(encoding="utf-8")


def last_log(comfyui: str) -> str:
    """The end of the log that ComfyUI's manager or desktop application keeps, "" where there is none."""
    for path in (Path(comfyui, "user", "comfyui.log"), Path(comfyui, "comfyui.log")) if comfyui else ():
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")[-LOG_CHARACTERS:]
    return ""


def as_text(facts: dict[str, Any]) -> str:
    """The facts as aligned text for a person."""
    installed = {name: version or "not installed" for name, version in facts["versions"].items()}
    compiler, cudnn = facts["torch_compile"], facts["cudnn"]
    attention = {name: "works" if not why else f"no: {why}" for name, why in facts["attention"].items()}
    defect = (
        "video convolutions take about 3x memory in half precision"
        if cudnn["conv3d_memory_defect"]
        else "no defect known"
    )
    folders = facts["paths"]
    models = [folder for found in folders["models"].values() for folder in found]
    sections = {
        "versions": installed,
        "system": {name: value or "none" for name, value in facts["system"].items()},
        "devices": {device["device"]: _device_line(device) for device in facts["devices"]},
        f"attention on {facts['best_device']}": attention,
        f"torch.compile on {facts['best_device']}": {
            "works" if compiler["works"] else "no": f"{compiler['needs']}: {compiler['reason'] or 'found'}"
        },
        "cuDNN": {"version": f"{cudnn['version']} ({defect})" if cudnn["version"] else "none"},
        "allocator": {"settings": facts["allocator"]["settings"] or "default"},
        "paths": {
            "pack": folders["pack"],
            "ComfyUI": folders["comfyui"] or "not found (set COMFYUI_PATH)",
            "models": ", ".join(models) or "no model folders found",
            "Hub cache": folders["caches"]["hub"],
            "compile cache": folders["caches"]["inductor"],
        },
        "advice": {str(number): text for number, text in enumerate(facts["advice"], 1)} or {"-": "nothing to change"},
    }
    return "\n\n".join(_section(title, rows) for title, rows in sections.items())


def _device_line(device: dict[str, Any]) -> str:
    memory = f", {device['total_gib']} GiB" if "total_gib" in device else ""
    free = f" ({device['free_gib']} GiB free)" if "free_gib" in device else ""
    capability = f", compute capability {device['capability']}" if "capability" in device else ""
    threads = f", {device['threads']} threads" if "threads" in device else ""
    return f"{device['name']}{memory}{free}{capability}{threads}"


def _section(title: str, rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in rows.items())])
