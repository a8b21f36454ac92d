"""A ComfyUI with this pack in it, from the shell.

`python . scripts.comfyui serve` starts the one that is found, for a person to use: its models are
visible, its folder stays as it is. `... run WORKFLOW.json --output FOLDER` starts a private one, runs a saved workflow
through its HTTP interface, and fetches what it saved.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from ..commands.files import check_writable, replacing
from .comfyui_server import PACK, ComfyServer, ServerError, find_comfyui
from .workflow import WorkflowError, to_prompt

HOME = PACK / ".comfyui"
"""Base directory of `serve`: what a person makes there stays. Hidden, because it links back to the pack."""


def serve(port: int) -> int:
    """Run until Ctrl-C. The found ComfyUI's model folders are added; everything written goes to `HOME`."""
    comfyui = find_comfyui()
    if comfyui is None:
        raise ServerError("no ComfyUI found: set COMFYUI_PATH to its folder")
    HOME.mkdir(parents=True, exist_ok=True)
    models = sorted(folder.name for folder in (comfyui / "models").iterdir() if folder.is_dir())
    lines = ["comfyui:", f"    base_path: {json.dumps(str(comfyui / 'models'))}", *(f"    {m}: {m}" for m in models)]
    (HOME / "model_paths.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["--extra-model-paths-config", str(HOME / "model_paths.yaml")]
    with ComfyServer(HOME, comfyui, arguments, port=port) as server:
        print(f"{comfyui} with FastDiffusers: {server.url}  (Ctrl-C ends it; log: {server.log_path})")
        while server.running:
            time.sleep(0.5)
        print(server.log_tail(), file=sys.stderr)
        return 1


def run(workflow: Path, output: Path) -> int:
    """Run a saved workflow and put its pictures and videos into `output`."""
    check_writable("output", output)
    graph = json.loads(workflow.read_text(encoding="utf-8"))
    with ComfyServer() as server:
        entry = server.run(to_prompt(graph, server.object_info()))
        files = [
            file
            for node in entry["outputs"].values()
            for found in node.values()
            if isinstance(found, list)
            for file in found
            if isinstance(file, dict) and "filename" in file
        ]
        if not files:
            raise ServerError(f"{workflow.name} saved nothing")
        output.mkdir(exist_ok=True)
        for file in files:
            target = output / f"comfyui_{file['filename']}"
            with replacing(target) as temporary:
                temporary.write_bytes(server.view(file))
            print(f"ComfyUI ran {workflow.name}: {target}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="comfyui", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    serving = actions.add_parser("serve", help="start it for a person to use")
    serving.add_argument("--port", type=int, default=8188)
    running = actions.add_parser("run", help="run one saved workflow")
    running.add_argument("workflow", type=Path)
    running.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server must not outlive this process
    try:
        return serve(args.port) if args.action == "serve" else run(args.workflow, args.output)
    except KeyboardInterrupt:
        return 130
    except (ServerError, WorkflowError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
