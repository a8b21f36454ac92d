"""`fastdiffusers doctor`: what this machine has, which optimizations work on it, and why the others do not."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import InputError
from . import environment
from .launch import start_script
from .launch.advice import Advice, LaunchFacts, launch_advice
from .launch.comfyui_log import SessionLog, find_logs, last_session
from .libraries import prepare_libraries, torchvision_command, torchvision_fault
from .options import path_argument
from .paths import PACK, find_comfyui, find_comfyuis, model_folders

HELP = "show what this machine can do, and why not the rest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.add_argument(
        "--launch",
        nargs="?",
        const=True,
        type=path_argument,
        metavar="FILE",
        help="print the script that starts ComfyUI as advised here; with FILE (.sh or .bat), write it",
    )
    parser.add_argument("--overwrite", action="store_true", help="with --launch FILE: whatever FILE is now")
    parser.add_argument(
        "--log", type=path_argument, metavar="FILE", help="ComfyUI's log, where doctor does not find it by itself"
    )
    parser.add_argument(
        "--plan",
        metavar="MODEL",
        help="what a card holds of a model: a folder, a Hub id in the cache, tiny:<family>, or an architecture by name "
        "(flux, zimage, qwenimage, wan-i2v); needs --vram",
    )
    parser.add_argument("--vram", metavar="GIB", help="with --plan: memory of the card in GiB, 24 or 24GB")
    parser.add_argument("--cluster", metavar="HOST:PORT", help="list the machines of a Ray, and how they differ")
    text = "with --cluster: a model that every machine should have; repeat for several"
    parser.add_argument("--look-for", action="append", type=path_argument, metavar="PATH", help=text)


def run(args: argparse.Namespace) -> None:
    if args.plan is not None or args.vram is not None:
        _plan(args)
        return
    if args.cluster is not None or args.look_for:
        _survey(args)
        return
    if args.launch is not None and args.json:
        raise InputError("--launch", args.launch, "a script is no JSON", "leave out --json")
    target: Path | None = args.launch if isinstance(args.launch, Path) else None
    if args.overwrite and target is None:
        raise InputError("--overwrite", True, "nothing is to be written", "name the script: --launch FILE")
    if target is not None:
        start_script.check_target(target, overwrite=args.overwrite)
    logs = None if args.log is None else [args.log]
    if logs and not logs[0].is_file():
        raise InputError("--log", str(args.log), "there is no such file", "check the path")
    prepare_libraries(args.verbose)
    facts = examine(logs)
    if args.launch is None:
        print(json.dumps(facts, indent=2, ensure_ascii=False) if args.json else as_text(facts))
        return
    launch(facts, target, overwrite=args.overwrite)


def _survey(args: argparse.Namespace) -> None:
    """Print what the machines of a cluster have."""
    from ..cluster import survey

    if args.cluster is None:
        raise InputError("--look-for", str(args.look_for[0]), "it goes with --cluster", "leave it out, or see --plan")
    _refuse(args, ("json", "launch", "log", "overwrite"), "a list of a cluster's machines")
    print(survey.as_text(survey.survey(args.cluster, [str(path.absolute()) for path in args.look_for or ()])))


def _refuse(args: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    for name in names:
        if value := getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')}", value, f"it has nothing to do with {what}", "leave it out")


def _plan(args: argparse.Namespace) -> None:
    """Print what a card of that size holds of the model."""
    if args.plan is None:
        raise InputError("--vram", args.vram, "it is for a plan", "name the model: --plan MODEL")
    _refuse(args, ("launch", "log", "overwrite", "cluster", "look_for"), "a plan")
    if args.vram is None:
        raise InputError("--plan", args.plan, "the card is not named", "give its memory in GiB: --vram 24")
    from .plan.card import gib_of

    vram = gib_of(args.vram)
    prepare_libraries(args.verbose)
    from .plan import figures, skeleton, text

    model = skeleton.model_of(args.plan)
    # To stderr, so that --json stays JSON.
    print(f"planning {model.name} for {vram:g} GiB, which takes up to a minute ...", file=sys.stderr, flush=True)
    found = figures.plan(model, int(vram * environment.GIB))
    print(json.dumps(text.as_dict(found), indent=2, ensure_ascii=False) if args.json else text.as_text(found))


def launch(facts: dict[str, Any], path: Path | None, *, overwrite: bool = False) -> None:
    """Write the start script, or print the one for this system.

    Raises:
        InputError: no ComfyUI was found, or the file cannot be written.
    """
    comfyui = facts["paths"]["comfyui"]
    if not comfyui:
        raise InputError("--launch", "", "no ComfyUI was found to start", "set COMFYUI_PATH to its folder")
    advice = tuple(Advice(**one) for one in facts["launch"])
    start = start_script.Start(sys.executable, comfyui, advice, start_script.known_flags(comfyui))
    if missing := environment.missing_requirements(Path(comfyui)):
        shown = ", ".join(missing[:4]) + (" ..." if len(missing) > 4 else "")
        lacks = f"this Python lacks {len(missing)} of ComfyUI's requirements ({shown})"
        print(f"{lacks}: run doctor with ComfyUI's own Python", file=sys.stderr)
    if path is None:
        print(start_script.as_bat(start) if sys.platform == "win32" else start_script.as_sh(start), end="")
        return
    start_script.write(path, start, overwrite=overwrite)
    print(f"written: {path}")


def examine(logs: list[Path] | None = None) -> dict[str, Any]:
    """Everything doctor knows, JSON-compatible; `advice` holds one sentence for each thing worth changing.

    Args:
        logs: of ComfyUI, the newest first; None looks for them.
    """
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
        "torchvision": torchvision_fault(),
        "paths": paths(),
    }
    log, session = last_session(find_logs(find_comfyuis()) if logs is None else logs)
    facts["session"] = {"log": "" if log is None else str(log), **asdict(session)}
    found = launch_advice(launch_facts(facts, session))
    facts["launch"] = [asdict(one) for one in found]
    facts["advice"] = advice(facts) + [one.text for one in found]
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
    if facts["torchvision"]:
        found.append(
            f"torchvision {versions['torchvision']} does not belong to torch {versions['torch']}, and ComfyUI cannot "
            f"start with it ({facts['torchvision']}): {torchvision_command(versions['torch'])}"
        )
    if not facts["torch_compile"]["works"]:
        found.append(f"torch.compile cannot be used: {facts['torch_compile']['reason']}")
    if device.startswith("cuda") and not facts["allocator"]["expandable_segments"] and sys.platform != "win32":
        found.append(
            "outside ComfyUI, which has cudaMallocAsync by default, PYTORCH_ALLOC_CONF=expandable_segments:True makes "
            "out-of-memory from fragmentation rarer"
        )
    for package in ("diffusers", "transformers", "accelerate", "safetensors", "peft"):
        if not versions[package]:
            found.append(f"{package} is not installed: pip install -r requirements.txt")
    return found


def launch_facts(facts: dict[str, Any], session: SessionLog) -> LaunchFacts:
    """What the advice on starting ComfyUI looks at: the best card, the allocator, the log of the last session."""
    best = facts["devices"][0]
    card = best if best["device"].startswith("cuda") else {}
    capability = tuple(int(part) for part in card["capability"].split(".")) if "capability" in card else None
    return LaunchFacts(
        total=int(card.get("total_gib", 0) * environment.GIB),
        free=int(card.get("free_gib", 0) * environment.GIB),
        capability=None if capability is None else (capability[0], capability[1]),
        allocator_settings=facts["allocator"]["settings"],
        log=session,
        flags=start_script.known_flags(facts["paths"]["comfyui"]),
        no_accelerator=best["device"] == "cpu" and session.vram_state in ("", "DISABLED") and not other_accelerators(),
        windows=sys.platform == "win32",
    )


def other_accelerators() -> list[str]:
    """Packages of devices that ComfyUI uses and this pack does not know."""
    return [name for name in ("torch_directml", "torch_npu", "torch_mlu") if importlib.util.find_spec(name)]


def as_text(facts: dict[str, Any]) -> str:
    """The facts as aligned text for a person."""
    installed = {name: version or "not installed" for name, version in facts["versions"].items()}
    compiler, cudnn = facts["torch_compile"], facts["cudnn"]
    attention = {name: "works" if not why else f"no: {why}" for name, why in facts["attention"].items()}
    defect = "no defect known"
    if cudnn["conv3d_memory_defect"]:
        defect = "video convolutions take about 3x memory in half precision"
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
        "ComfyUI's last session": _session_rows(facts["session"]),
        "advice": {str(number): text for number, text in enumerate(facts["advice"], 1)} or {"-": "nothing to change"},
    }
    return "\n\n".join(_section(title, rows) for title, rows in sections.items())


def _device_line(device: dict[str, Any]) -> str:
    memory = f", {device['total_gib']} GiB" if "total_gib" in device else ""
    free = f" ({device['free_gib']} GiB free)" if "free_gib" in device else ""
    capability = f", compute capability {device['capability']}" if "capability" in device else ""
    threads = f", {device['threads']} threads" if "threads" in device else ""
    return f"{device['name']}{memory}{free}{capability}{threads}"


def _session_rows(session: dict[str, Any]) -> dict[str, str]:
    """What the log says, as far as it says it."""
    if not session["log"]:
        return {"log": "none found (--log FILE names one)"}
    partial, errors = session["partial_loads"], session["memory_errors"]
    away = max((load["offloaded"] for load in partial), default=0) / environment.GIB
    rows = {
        "log": session["log"],
        "versions": ", ".join(f"{name} {version}" for name, version in session["versions"]),
        "memory": ", ".join(filter(None, (session["vram_state"], session["allocator"], session["attention"]))),
        "runs": str(session["runs"]),
        "offloaded": f"{_times(partial)}, {away:.1f} GiB at most" if partial else "",
        "out of memory": _times(errors) if errors else "",
    }
    return {name: text for name, text in rows.items() if text}


def _times(events: list[Any]) -> str:
    return "once" if len(events) == 1 else f"{len(events)} times"


def _section(title: str, rows: dict[str, str]) -> str:
    width = max(map(len, rows))
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in rows.items())])
