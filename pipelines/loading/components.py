"""What a pipeline's components are, told from the classes that its `model_index.json` names: which are loaded, which
have weights, and which file holds their configuration. Reads no file.

A class that this version of the libraries does not have is judged by its name.
"""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from ...fallback import describe, is_out_of_memory
from ..modular.blocks import all_components, default_blocks
from ..modular.index import BLOCKS, is_modular

log = logging.getLogger(__name__)

CONFIG_FILES = (
    "scheduler_config.json",
    "guider_config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "mel_config.json",
    "config.json",
)
"""What diffusers and transformers call the configuration of a component."""
_TOKENIZER = re.compile(r"(Tokenizer(Fast|Legacy)?|(Tokenizers|Python|SentencePiece|MistralCommon)Backend)$")
_NO_WEIGHTS = re.compile(rf"({_TOKENIZER.pattern}|Scheduler|Guidance|Processor(Fast|Pil|WithLM)?|Extractor|^Mel)$")
"""Names of classes that are configuration only."""
_VOCABULARIES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
"""Any of them is enough for a tokenizer without a configuration of its own."""


def components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Name -> (library, class) of the components that a load reads: those there that the pipeline class takes."""
    dropped = {*not_taken(index), *_made_by_itself(index)}
    return {name: entry for name, entry in _listed(index).items() if name not in dropped}


def not_taken(index: dict[str, Any]) -> list[str]:
    """The components of an index that its pipeline class has no argument for, or its blocks no use: they go unread."""
    pipeline_class = find_class("diffusers", str(index.get("_class_name")))
    if pipeline_class is None:
        return []
    taken: Any = inspect.signature(pipeline_class.__init__).parameters
    if is_modular(index):
        taken = all_components(default_blocks(pipeline_class, index.get(BLOCKS)))
    return [name for name in _listed(index) if name not in taken]


def _made_by_itself(index: dict[str, Any]) -> list[str]:
    """The components that a class makes where it is given none, and does not call optional: diffusers reads none of
    them (and writes none, for LongCat's sound)."""
    pipeline_class = find_class("diffusers", str(index.get("_class_name")))
    if pipeline_class is None or is_modular(index):
        return []
    parameters = inspect.signature(pipeline_class.__init__).parameters
    made = {name for name, each in parameters.items() if each.default is not each.empty}
    made -= {*getattr(pipeline_class, "_optional_components", ())}
    return [name for name in _listed(index) if name in made]


def absent(index: dict[str, Any], pipeline_class: type | None) -> dict[str, None]:
    """What an index says that a folder was saved without, as arguments of a load: diffusers asks for most of it."""
    taken: Any = inspect.signature(pipeline_class.__init__).parameters if pipeline_class else ()  # type: ignore[misc]
    return {name: None for name, entry in index.items() if name in taken and entry == [None, None]}


def _listed(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    entries = {name: entry for name, entry in index.items() if not name.startswith("_") and isinstance(entry, list)}
    return {name: (str(e[0]), str(e[1])) for name, e in entries.items() if len(e) == 2 and e[0] and e[1]}


def has_weights(library: str, class_name: str) -> bool:
    """Whether a component of this class comes with weights."""
    found = find_class(library, class_name)
    if found is None:
        return _NO_WEIGHTS.search(class_name) is None
    import torch

    if class_name.startswith("AutoModel"):  # stands for the class that the configuration names
        return True
    # AceStepAudioTokenizer is one; those of ONNX have their weights without.
    return issubclass(found, torch.nn.Module) or class_name.startswith("Onnx")


def proofs(library: str, class_name: str) -> tuple[str, ...]:
    """Names of files any of which shows that a component of this class is there."""
    found = find_class(library, class_name)
    own = getattr(found, "config_name", None)
    vocabularies = getattr(found, "vocab_files_names", None)
    names = [own] if isinstance(own, str) else []
    names += [*vocabularies.values()] if isinstance(vocabularies, dict) else []
    return (*names, *CONFIG_FILES, *(_VOCABULARIES if _TOKENIZER.search(class_name) else ()))


@lru_cache(maxsize=1024)
def find_class(library: str, class_name: str) -> type[Any] | None:
    """The class that diffusers would take for an entry of a `model_index.json`; None where this version has none.

    Only diffusers, transformers and the parts of diffusers' pipelines are looked into: a file imports nothing else.
    """
    import diffusers
    import transformers

    try:
        home = {"diffusers": diffusers, "transformers": transformers}.get(library)
        found = getattr(home or getattr(diffusers.pipelines, library), class_name)
    except Exception as error:  # of any type: what a class needs is imported with it
        if is_out_of_memory(error):
            raise
        log.debug("%s of %s is not there: %s", class_name, library, describe(error))
        return None
    return found if isinstance(found, type) and type(found).__name__ != "DummyObject" else None


@contextmanager
def made_around_any_unet(pipeline_class: Any) -> Iterator[None]:
    """Let `pipeline_class` be made, while the block runs, around a UNet that says no `sample_size` too.

    Where its constructor fails with one, it is called once more, as for a form.
    """
    from ...optimizations.components import unet_with_a_size

    original = pipeline_class.__init__

    @functools.wraps(original)
    def made(self: Any, *args: Any, **parts: Any) -> None:
        try:
            original(self, *args, **parts)
        except TypeError:
            unet = parts.get("unet")
            if unet is None or unet.config.get("sample_size", 64) is not None:
                raise
            with unet_with_a_size(unet):
                original(self, *args, **parts)

    inherited = "__init__" not in vars(pipeline_class)
    pipeline_class.__init__ = made
    try:
        yield
    finally:
        if inherited:
            del pipeline_class.__init__
        else:
            pipeline_class.__init__ = original
