"""The pipelines, LoRAs and video VAEs that the loaders offer, and the file behind each choice.

Several of ComfyUI's paths may hold a model of the same name. As in ComfyUI, the name alone is the one of the first
path; the others are offered with the path that they are in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import folder_paths

from ...cache_folder import cache_folder
from ...errors import InputError, ModelFileError
from ...pipelines.conditions.controlnets import find_controlnets
from ...pipelines.conditions.image_prompts.keys import find_redux
from ...pipelines.loading.local_models import find_local_pipelines
from ...pipelines.loading.parts import UNREADABLE, is_gguf, kind_of_part
from ...pipelines.tiny import (
    CONTROLNET_CLASSES,
    IMAGE_PROMPT_FAMILIES,
    PIPELINE_CLASSES,
    TINY_FAMILIES,
    TINY_LORAS,
)
from ...vae import embedded_video_vae
from ...vae.embedded import RANDOM, TRAINED

CUSTOM = "[custom]"
NONE_FOUND = "[none found]"
"""What a list offers that would else be empty. Choosing it is refused, with the folders that were searched."""
TINY_PREFIX = "embedded tiny: "
TINY_VIDEO_VAES = {TINY_PREFIX + "video VAE": TRAINED, TINY_PREFIX + "video VAE-random": RANDOM}
"""What Load Video VAE offers without a file -> what stands for a path."""
TINY_LORA_CHOICES = {TINY_PREFIX + name.removeprefix("tiny:").replace("-", " "): name for name in TINY_LORAS}
"""What Load LoRA offers for the embedded tiny Wan -> what stands for a path."""
CHECKPOINT_PREFIX = "checkpoints/"
SEEDVR2 = "SEEDVR2/"
"""SeedVR2's own folder in the models directory, where its users have this VAE already."""
_IN_PATH = re.compile(r"(.+) \(in (.+)\)", re.DOTALL)
"""A name that the first path has too, and the path that this one is in."""


def pipeline_choices() -> list[str]:
    """What Load Diffusers Pipeline offers.

    Folders with a `model_index.json` or a `modular_model_index.json` and single .safetensors files under every
    `diffusers` path, single files under the `checkpoints` paths, the embedded tiny pipelines, and `[custom]` for
    anything else.
    """
    found: dict[Path, tuple[str, Path]] = {}
    for folder in _diffusers_folders():
        for path in find_local_pipelines([folder]):
            found.setdefault(path, (path.relative_to(folder).as_posix(), folder))
        if folder not in found:
            for file in folder.glob("*.safetensors"):
                found.setdefault(file, (file.name, folder))
    names = {*_told_apart(found.values()), *(CHECKPOINT_PREFIX + name for name in _safetensors("checkpoints"))}
    return [*sorted(names, key=str.lower), *(TINY_PREFIX + family for family in PIPELINE_CLASSES), CUSTOM]


def default_pipeline(choices: list[str]) -> str:
    """Return the first real model, or the smallest embedded one where there is none, so that a new graph can run."""
    first = choices[0]
    return TINY_PREFIX + TINY_FAMILIES[0] if first == CUSTOM else first


def pipeline_source(model: str, custom_model: str) -> str:
    """The loader's source (absolute path, Hub id or "tiny:<family>") that a choice stands for.

    Raises:
        InputError: `[custom]` without a path or Hub id.
        ModelFileError: a name that is under none of the model paths (any more).
    """
    if model == CUSTOM:
        custom = custom_model.strip().strip('"')
        if not custom:
            cure = "enter a folder, a .safetensors file or a Hub id such as owner/name, or choose another model"
            raise InputError("custom_model", custom_model, f"it is empty, but model is {CUSTOM}", cure)
        return custom
    if model.startswith(TINY_PREFIX):
        return "tiny:" + model.removeprefix(TINY_PREFIX)
    if model.startswith(CHECKPOINT_PREFIX):
        found = _found("checkpoints", model.removeprefix(CHECKPOINT_PREFIX))
        if found:
            return found
    there = [path for path in _candidates(model, _diffusers_folders()) if os.path.exists(path)]
    if there:  # one that is no pipeline is chosen only where no other is one, to be told what is wrong with it
        return str(next((path for path in there if path.is_file() or find_local_pipelines([path]) == [path]), there[0]))
    searched = ", ".join(str(folder) for folder in _diffusers_folders())
    reason = f"no such model under the diffusers paths ({searched})"
    raise ModelFileError(
        "model", model, reason, f"put it into models/diffusers, or choose {CUSTOM} and enter its path or Hub id"
    )


def download_folder() -> Path:
    """Return the folder for models from the Hub: the first `diffusers` path."""
    return _diffusers_folders()[0]


def video_vae_choices() -> list[str]:
    """What Load Video VAE offers: files under the `vae` paths and in SeedVR2's model folder, and those embedded."""
    names = {*_safetensors("vae"), *(SEEDVR2 + file.name for file in _seedvr2_files())}
    return [*sorted(names, key=str.lower), *TINY_VIDEO_VAES]


def video_vae_path(name: str) -> str:
    """Return the absolute path of a chosen video VAE. Raises ModelFileError when the file is missing."""
    if name in TINY_VIDEO_VAES:
        try:
            return str(embedded_video_vae(TINY_VIDEO_VAES[name], cache_folder()))
        except OSError as error:
            cure = "set FASTDIFFUSERS_CACHE to a folder that can be written"
            raise ModelFileError("vae_name", name, f"it cannot be written ({error})", cure) from error
    for file in _seedvr2_files():
        if name == SEEDVR2 + file.name:
            return str(file)
    return _full_path("vae", "vae_name", name, "put the VAE's .safetensors file there and press R in ComfyUI")


def part_choices(kind: str, component: str) -> list[str]:
    """The files under the paths of a kind ("diffusion_models", "text_encoders", "vae") that may be such a component.

    Told from their headers: files of other families and formats are not offered. Those whose header cannot be read come
    last: choosing one says why. Of whole checkpoints ("checkpoints") these are what another loader is for.
    """
    kinds = {name: kind_of_part(Path(_found(kind, name))) for name in _part_names(kind)}
    wanted = (component,) if kind == "checkpoints" else (component, UNREADABLE)
    names = [name for name, found in kinds.items() if found in wanted]
    return sorted(names, key=lambda name: (kinds[name] == UNREADABLE, name.lower()))


def part_files(kind: str) -> list[Path]:
    """Every file under the paths of a kind that may be a part, to choose from."""
    return [Path(_found(kind, name)) for name in _part_names(kind)]


def _part_names(kind: str) -> list[str]:
    """The .safetensors files under the paths of a kind, and diffusion models as GGUF, which ComfyUI does not list."""
    names = _safetensors(kind)
    if kind == "diffusion_models":
        for folder in filter(Path.is_dir, _folders(kind)):
            files, _ = folder_paths.recursive_search(str(folder), excluded_dir_names=[".git"])
            names += [name for name in files if is_gguf(Path(name))]
    return list(dict.fromkeys(names))


def part_path(kind: str, widget: str, name: str) -> str:
    """Return the absolute path of a chosen part. Raises ModelFileError when the file is missing."""
    if kind == "diffusion_models" and name.startswith(CHECKPOINT_PREFIX) and not _found(kind, name):
        kind, name = "checkpoints", name.removeprefix(CHECKPOINT_PREFIX)
    return _full_path(kind, widget, name, "put the file there and press R in ComfyUI")


def comfyui_folder() -> Path:
    """Return the folder of the running ComfyUI's code."""
    return Path(folder_paths.__file__).parent


def lora_choices() -> list[str]:
    """The .safetensors files under the `loras` paths, and those that are made on the spot for the embedded tiny Wan."""
    return [*(sorted(_safetensors("loras"), key=str.lower) or [NONE_FOUND]), *TINY_LORA_CHOICES]


def lora_path(name: str) -> str:
    """Return the path of a chosen LoRA, or an embedded one's name. Raises ModelFileError when the file is missing."""
    if name in TINY_LORA_CHOICES:
        return TINY_LORA_CHOICES[name]
    return _full_path("loras", "lora_name", name, "put the file there and press R in ComfyUI")


def controlnet_choices() -> list[str]:
    """What Load ControlNet offers: folders under the `controlnet` and `diffusers` paths, files under the `controlnet`
    paths that are not in one of them, embedded ones, `[custom]`."""
    found = [(path, root) for root in _control_folders() for path in find_controlnets(root)]
    names = _told_apart((path.relative_to(root).as_posix(), root) for path, root in found)
    folders = {path.resolve() for path, _ in found}
    files = [
        name for name in _safetensors("controlnet") if Path(_found("controlnet", name)).resolve().parent not in folders
    ]
    return [*sorted([*names, *files], key=str.lower), *(TINY_PREFIX + family for family in CONTROLNET_CLASSES), CUSTOM]


def controlnet_source(name: str, custom: str) -> str:
    """Return the folder or file of a chosen control model, or "tiny:<family>".

    Raises:
        InputError: `[custom]` without a path.
        ModelFileError: it is missing.
    """
    if name == CUSTOM:
        return _typed("custom_controlnet", custom, f"it is empty, but controlnet_name is {CUSTOM}", "a folder or file")
    if name.startswith(TINY_PREFIX):
        return "tiny:" + name.removeprefix(TINY_PREFIX)
    folders = _control_folders()
    there = next(filter(os.path.exists, _candidates(name, folders)), None)
    if there is None:
        reason = f"no such folder or file under the controlnet and diffusers paths ({', '.join(map(str, folders))})"
        raise ModelFileError("controlnet_name", name, reason, "put it into models/controlnet and press R in ComfyUI")
    return str(there)


def _typed(name: str, text: str, reason: str, what: str) -> str:
    """A path that was typed into a field, without the quotes around it. Raises InputError where there is none."""
    path = text.strip().strip('"')
    if not path:
        raise InputError(name, text, reason, f"enter {what}, or choose another one")
    return path


def image_prompt_choices() -> list[str]:
    """What Load Image Prompt Model offers: files under the `ipadapter` paths, Flux Redux folders, embedded ones,
    `[custom]`."""
    found = [(path.relative_to(root).as_posix(), root) for root in _diffusers_folders() for path in find_redux(root)]
    names = sorted([*_safetensors("ipadapter"), *_told_apart(found)], key=str.lower)
    return [*names, *(TINY_PREFIX + family for family in IMAGE_PROMPT_FAMILIES), CUSTOM]


def image_prompt_source(name: str, custom: str) -> str:
    """Return the file or the folder of a chosen image prompt model, or "tiny:<family>".

    Raises:
        InputError: `[custom]` without a path.
        ModelFileError: it is missing.
    """
    if name == CUSTOM:
        return _typed("custom_model", custom, f"it is empty, but model_name is {CUSTOM}", "a file or a folder")
    if name.startswith(TINY_PREFIX):
        return "tiny:" + name.removeprefix(TINY_PREFIX)
    own = _folders("ipadapter") if "ipadapter" in folder_paths.folder_names_and_paths else []
    there = next((path for path in _candidates(name, [*own, *_diffusers_folders()]) if path.exists()), None)
    if there is None:
        reason = "no such file under the ipadapter paths, and no such folder under the diffusers paths"
        raise ModelFileError("model_name", name, reason, "put it there and press R in ComfyUI, or choose [custom]")
    return str(there)


def _control_folders() -> list[Path]:
    return [*_folders("controlnet"), *_diffusers_folders()]


def _full_path(kind: str, widget: str, name: str, cure: str) -> str:
    """Return where the file `name` is under ComfyUI's paths of a kind. Raises ModelFileError when it is nowhere."""
    found = _found(kind, name)
    if found:
        return found
    searched = ", ".join(folder_paths.get_folder_paths(kind))
    raise ModelFileError(widget, name, f"no such file under the {kind} paths ({searched})", cure)


def _found(kind: str, name: str) -> str:
    """The file that a choice names, "" where there is none."""
    return str(next(filter(os.path.isfile, _candidates(name, _folders(kind))), ""))


def _candidates(name: str, folders: list[Path]) -> list[Path]:
    """Where a choice may be. A workflow from elsewhere cannot name anything outside of the folders."""
    told = _IN_PATH.fullmatch(name)
    places = [(folder, name) for folder in folders]
    places += [(folder, told[1]) for folder in folders if told and told[2] == str(folder)]
    return [folder / name for folder, name in places if not Path(name).is_absolute() and ".." not in Path(name).parts]


def _told_apart(found: Iterable[tuple[str, Path]]) -> list[str]:
    """What to call models, given as (name, folder): every name as it is once, and with the folder after that."""
    labels: dict[str, Path] = {}
    for name, folder in found:
        label = name if name not in labels else f"{name} (in {folder})"
        if label == name or not (folder / name).samefile(labels[name] / name):
            labels[label] = folder
    return [*labels]


def _diffusers_folders() -> list[Path]:
    return _folders("diffusers")


def _folders(kind: str) -> list[Path]:
    return [Path(folder) for folder in folder_paths.get_folder_paths(kind)]


def _safetensors(kind: str) -> list[str]:
    """The .safetensors files under the paths of a kind, each told apart from others of its name."""
    if kind not in folder_paths.folder_names_and_paths:
        return []
    names = [name for name in folder_paths.get_filename_list(kind) if name.endswith(".safetensors")]
    folders = _folders(kind)
    if len(folders) < 2:
        return names
    return _told_apart((name, folder) for name in names for folder in folders if (folder / name).is_file())


def _seedvr2_files() -> list[Path]:
    return sorted(Path(folder_paths.models_dir, SEEDVR2).glob("*.safetensors"))
