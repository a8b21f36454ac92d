"""What is to be made of a file of prompts: one item a line, with its options, its name and what identifies it."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import InputError
from ..conditions import absolute_keyframe
from ..conditions.given import absolute_argument
from ..files import numbered
from ..options import lora_specs
from .arguments import FOR_ALL_LINES, LineParser
from .inputs import Stamps
from .lines import Line, in_line
from .manifest import NAME as MANIFEST
from .request import LATENT, leave_vae_out

LOADING = (
    "model",
    "diffusion_model",
    "text_encoder",
    "vae",
    "second_expert",
    "audio_vae",
    "revision",
    "quantization",
    "dtype",
    "device",
)
"""Options whose change loads another pipeline."""
SENT = (
    "model",
    "prompt",
    "negative_prompt",
    "steps",
    "guidance",
    "width",
    "height",
    "num_frames",
    "frame_rate",
    "flow_shift",
    "batch",
    "seed",
    "image",
)
"""Options that a server is told; the others it is not, or they are refused."""
NO_PROMPT = """add it; an empty one is {"prompt": ""} in a .jsonl, or --prompt "" in a .txt"""
SUFFIXES = (".png", ".mp4", ".safetensors")
MOST_BYTES_OF_A_NAME = 200


@dataclass(frozen=True)
class Item:
    """One line's work, as plain data.

    Attributes:
        number: from 1, in the order of the file.
        line: of the file, from 1.
        name: of the result in the output folder, with "/" between folders; without a suffix where the model decides it.
        args: every option of `generate` for it, its paths absolute.
        key: fingerprint of the name and of everything that decides what comes out, its input files included.
    """

    number: int
    line: int
    name: str
    args: argparse.Namespace
    key: str

    @property
    def model(self) -> tuple[str, ...]:
        """What it has to load: items of one model follow each other."""
        return tuple(str(getattr(self.args, name)) for name in LOADING)

    @property
    def loras(self) -> str:
        """What it adds to the model."""
        return str(self.args.lora)


def read_items(path: Path, lines: Sequence[Line], parser: LineParser, base: argparse.Namespace) -> list[Item]:
    """The items of a file's lines.

    Raises:
        InputError: a line's options cannot be read, name no model or prompt, or two results would have one name.
    """
    items, taken = [], dict[str, int]()
    files, folders = dict[str, tuple[int, str]](), dict[str, tuple[int, str]]()
    stamps = Stamps()
    for number, line in enumerate(lines, 1):
        with in_line(path, line.number):
            args = parser.parse_line(base, line.words)
            if args.model is None and args.diffusion_model is None and base.engine is None:
                raise InputError("model", "", "no model is named", "name it in the line, or with --model for all")
            if args.prompt is None:
                raise InputError("prompt", "", "the line has none", NO_PROMPT)
            name = f"{number:05d}" if args.output is None else _name(args.output)
            for file in _files(name, args.batch):
                other = taken.setdefault(file.casefold(), line.number)
                if other != line.number:
                    raise InputError("output", name, f"line {other} writes {file} too", "choose another name")
            _check_folders(name, args.batch, line.number, files, folders)
            make_absolute(args)
            if name.endswith(LATENT):
                leave_vae_out(args)
            items.append(Item(number, line.number, name, args, _fingerprint(name, args, stamps)))
    return items


def in_good_order(items: Sequence[Item]) -> list[Item]:
    """The items of one model after each other, and of those the ones with the same LoRAs; else as in the file."""
    models: dict[object, int] = {}
    for item in items:
        models.setdefault(item.model, len(models))
        models.setdefault((item.model, item.loras), len(models))
    return sorted(items, key=lambda item: (models[item.model], models[item.model, item.loras], item.number))


def _name(output: Path) -> str:
    """The name that a line gives its result."""
    name = PurePosixPath(output.as_posix())
    if output.is_absolute() or output.drive or ".." in name.parts or not name.name:
        raise InputError("output", str(output), "it must be a name within the output folder", "use e.g. fox.png")
    if any(part.startswith(".") for part in name.parts):
        raise InputError("output", str(output), "a name that begins with a dot is hidden", "leave the dot out")
    if len(str(name).encode()) > MOST_BYTES_OF_A_NAME:
        raise InputError("output", str(output), f"it has more than {MOST_BYTES_OF_A_NAME} bytes", "shorten it")
    if name.suffix and name.suffix.lower() not in SUFFIXES:
        cure = f"use {', '.join(SUFFIXES)}, or no suffix: the model's own form"
        raise InputError("output", str(output), "results are pictures, videos or latents", cure)
    return str(name)


def _files(name: str, batch: int) -> list[str]:
    """What may be written for a name, less suffixes, so that no report of one is another's."""
    stem = Path(name).with_suffix("") if Path(name).suffix else Path(name)
    return [stem.as_posix(), *(path.as_posix() for path in numbered(stem, min(max(batch, 1), 64)) if path != stem)]


def _check_folders(
    name: str, batch: int, line: int, files: dict[str, tuple[int, str]], folders: dict[str, tuple[int, str]]
) -> None:
    """Take down what a name makes of files and folders. Raises InputError where one would have to be both."""
    for folder in list(PurePosixPath(name).parents)[:-1]:
        folders.setdefault(folder.as_posix().casefold(), (line, folder.as_posix()))
        if folder.as_posix().casefold() == MANIFEST:
            raise InputError("output", name, f"{MANIFEST} is a file of the output folder", "choose another name")
    for file in may_write(name, batch):
        files.setdefault(file.casefold(), (line, file))
    for both in files.keys() & folders.keys():
        other = max({files[both][0], folders[both][0]} - {line}, default=line)
        reason = f"{files[both][1]} would be a file and a folder, because of line {other}"
        raise InputError("output", name, reason, "choose another name")


def may_write(name: str, batch: int) -> list[str]:
    """The files that an item may write, within the output folder: its results, and its report."""
    suffix = Path(name).suffix
    first = Path(name).with_suffix("") if suffix else Path(name)
    suffixes = (suffix,) if suffix else SUFFIXES
    results = {path.with_name(path.name + end) for path in numbered(first, min(max(batch, 1), 64)) for end in suffixes}
    return sorted(path.as_posix() for path in {*results, first.with_name(f"{first.name}.json")})


def make_absolute(args: argparse.Namespace) -> None:
    """Let the paths hold wherever the item is made."""
    for name, value in vars(args).items():
        if name == "output":
            continue
        if isinstance(value, Path):
            setattr(args, name, value.absolute())
        elif isinstance(value, list) and value and all(isinstance(each, Path) for each in value):
            setattr(args, name, [each.absolute() for each in value])
    if args.model is not None and _exists(args.model):
        args.model = str(Path(args.model).expanduser().absolute())
    models = getattr(args, "controlnet", [])
    args.controlnet = [str(Path(each).expanduser().absolute()) if _exists(each) else each for each in models]
    args.keyframe = [absolute_keyframe(each) for each in getattr(args, "keyframe", [])]
    args.argument = [absolute_argument(each) for each in getattr(args, "argument", [])]
    args.lora = [[spec.path, repr(spec.strength), spec.expert] for spec in lora_specs(args)]


def _exists(model: str) -> bool:
    try:
        return Path(model).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # no name of a file at all: the loader says what is wrong with it
        return False


def _fingerprint(name: str, args: argparse.Namespace, stamps: Stamps) -> str:
    options: dict[str, Any] = {
        option: value for option, value in vars(args).items() if option not in (*FOR_ALL_LINES, "output", "command")
    }
    if args.engine is not None:
        # Which server it is does not count, as which machine of a cluster; and it chooses how its model runs.
        options = {option: options[option] for option in SENT} | {"engine": True}
    text = json.dumps({"name": name, "inputs": stamps.of(args), **options}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
