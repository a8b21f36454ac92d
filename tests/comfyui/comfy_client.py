"""What the tests ask of a running ComfyUI, in a few words."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastdiffusers.scripts.comfyui_server import ComfyServer
from fastdiffusers.scripts.workflow import DYNAMIC_COMBO

TINY = "embedded tiny: "


def nearly_equal(pictures: np.ndarray, others: np.ndarray) -> bool:
    """Whether 8-bit pictures are the same but for rounding: weights of two files lie otherwise in memory."""
    return bool(np.abs(pictures.astype(int) - others.astype(int)).max() <= 1)


def widget_defaults(
    inputs: Mapping[str, Any], chosen: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the name and default of every widget that `inputs` declares.

    A dynamic combo brings the widgets of one option: of the one in `chosen`, else of its first.
    """
    for name, (io_type, *rest) in inputs.items():
        options = rest[0] if rest else {}
        if io_type == DYNAMIC_COMBO:
            keys = [option["key"] for option in options["options"]]
            key = chosen.get(prefix + name, options.get("default", keys[0]))
            yield prefix + name, key
            below = options["options"][keys.index(key)]["inputs"].get("required", {})
            yield from widget_defaults(below, chosen, f"{prefix}{name}.")
        elif "default" in options:
            yield prefix + name, options["default"]
        elif io_type == "COMBO" or isinstance(io_type, list):
            yield prefix + name, (options.get("options") if io_type == "COMBO" else io_type)[0]
        elif io_type == "STRING":
            yield prefix + name, ""


class Client:
    """A thin wrapper of `ComfyServer` that knows this pack's graphs."""

    def __init__(self, server: ComfyServer) -> None:
        self.server = server
        self.base: Path = server.base
        self.info: dict[str, Any] = server.object_info()

    def node(self, kind: str, **inputs: Any) -> dict[str, Any]:
        """A node of a prompt: the defaults of its widgets, and what is given."""
        required = self.info[kind]["input"].get("required", {})
        return {"class_type": kind, "inputs": {**dict(widget_defaults(required, inputs)), **inputs}}

    def defaults(self, kind: str) -> dict[str, Any]:
        """Every required widget's default, as a new node in the editor has it."""
        return dict(widget_defaults(self.info[kind]["input"].get("required", {}), {}))

    def sampling(self, model: str, save: bool = True, **widgets: Any) -> dict[str, Any]:
        """Load a pipeline, sample, show the report, and save the images and the latent."""
        prompt = {
            "load": self.node("FastDiffusersLoadPipeline", model=model),
            "sample": self.node("FastDiffusersSampler", **{"pipeline": ["load", 0], "prompt": "a cat", **widgets}),
            "report": self.node("FastDiffusersShowReport", report=["sample", 3], format="json"),
        }
        if save:
            prompt["save"] = self.node("SaveImage", images=["sample", 0], filename_prefix="sampled")
            prompt["latent"] = self.node("SaveLatent", samples=["sample", 1], filename_prefix="sampled")
        return prompt

    def run(self, prompt: Mapping[str, Any], timeout: float = 300) -> dict[str, Any]:
        """Run to the end, successful or not, and return the history entry."""
        return self.server.wait(self.server.queue(prompt), timeout)

    def succeed(self, prompt: Mapping[str, Any], timeout: float = 300) -> dict[str, Any]:
        """Run a prompt that has to succeed."""
        return self.server.run(prompt, timeout)

    def images(self, entry: Mapping[str, Any], node: str = "save") -> np.ndarray:
        """The saved pictures of a history entry as uint8 [N, H, W, 3]."""
        pictures = []
        for file in entry["outputs"][node]["images"]:
            path = self.base / file["type"] / file["subfolder"] / file["filename"]
            pictures.append(np.asarray(Image.open(path).convert("RGB")))
        return np.stack(pictures)

    def latent(self, entry: Mapping[str, Any], node: str = "latent") -> Any:
        """The saved latent of a history entry."""
        from safetensors.torch import load_file

        file = entry["outputs"][node]["latents"][0]
        return load_file(self.base / file["type"] / file["subfolder"] / file["filename"])["latent_tensor"]

    @staticmethod
    def report(entry: Mapping[str, Any], node: str = "report") -> dict[str, Any]:
        """The report that Show Report put out as JSON."""
        return json.loads(entry["outputs"][node]["text"][0])

    @staticmethod
    def error(entry: Mapping[str, Any]) -> dict[str, Any]:
        """What `execution_error` said about a failed run."""
        return next(data for kind, data in entry["status"]["messages"] if kind == "execution_error")

    def wait_for_log(self, text: str, since: int = 0, timeout: float = 300) -> None:
        """Wait until the server's log, from character `since` on, contains `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.server.log()[since:]:
            assert time.monotonic() < deadline, f"{text!r} never came:\n{self.server.log_tail()}"
            time.sleep(0.02)
