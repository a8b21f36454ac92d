"""What the blocks of a modular pipeline say of themselves: inputs, components, loops, and which of them decode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

TEXT = "text_encoder"
"""The block that makes embeddings of the prompts."""
DECODE = "decode"
"""The block, of those that follow each other, that makes pictures of latents."""
ENHANCERS = ("prompt_upsampler", "prompt_enhancer", "prompt_upsample")
"""Blocks that rewrite a prompt with a language model: without its weights, the prompt is used as it is."""
PRETRAINED = "from_pretrained"
LEAST = {"prompt": True, "num_frames": True}
"""What every call of a model with a prompt gives."""


def default_blocks(pipeline_class: Any, name: Any = None) -> Any:
    """The blocks that a modular pipeline class runs.

    Args:
        name: of the blocks' class, as a saved pipeline notes it; diffusers takes the class's own where that is a base
            class without blocks.
    """
    return _built(pipeline_class, name if isinstance(name, str) else "")


@lru_cache(maxsize=32)
def _built(pipeline_class: Any, name: str) -> Any:
    import diffusers

    found = getattr(diffusers, name, None) if name else None
    if found is None or not getattr(found, "block_classes", None):
        found = getattr(diffusers, pipeline_class.default_blocks_name)
    return found()


def blocks_of(pipeline: Any) -> Any:
    """The blocks that an object runs (its `blocks` is a copy), or those of a class."""
    return default_blocks(pipeline) if isinstance(pipeline, type) else pipeline._blocks


def all_components(blocks: Any) -> dict[str, Any]:
    """Name -> `ComponentSpec` of everything that the blocks use."""
    return {spec.name: spec for spec in blocks.expected_components}


def expected_components(blocks: Any) -> dict[str, Any]:
    """Name -> `ComponentSpec` of the components that are loaded; the others are built from their configuration."""
    return {spec.name: spec for spec in blocks.expected_components if spec.default_creation_method == PRETRAINED}


def guiders(blocks: Any) -> dict[str, dict[str, Any]]:
    """Name -> configuration of the guiders that the blocks build."""
    return {spec.name: dict(spec.config or {}) for spec in blocks.expected_components if "guider" in spec.name}


def inputs(blocks: Any) -> dict[str, Any]:
    """Name -> default of everything that a call may be given."""
    return {item.name: item.default for item in blocks.inputs if item.name is not None}


def outputs(blocks: Any) -> tuple[str, ...]:
    """Names of what the blocks give, in their order."""
    return tuple(dict.fromkeys(item.name for item in blocks.intermediate_outputs))


def stages(blocks: Any) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """The blocks up to the latent, and those from the one that decodes on."""
    items = list(blocks.sub_blocks.items())
    place = next((index for index, (name, _) in enumerate(items) if name == DECODE), len(items))
    return items[:place], items[place:]


def one_by_one(named: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Blocks with those that only run others in a row replaced by these."""
    from diffusers import modular_pipelines

    row: Any = modular_pipelines.SequentialPipelineBlocks
    for name, block in named:
        if isinstance(block, row):
            yield from one_by_one(list(block.sub_blocks.items()))
        else:
            yield name, block


def loop_blocks(blocks: Any) -> Iterator[Any]:
    """Every block that loops over steps, at any depth: each has a progress bar of its own."""
    for block in blocks.sub_blocks.values():
        if hasattr(block, "progress_bar"):
            yield block
        elif block.sub_blocks:
            yield from loop_blocks(block)


def running_blocks(blocks: Any, given: Mapping[str, Any]) -> Any:
    """The blocks that a call with these inputs runs, where that can be told; else all."""
    try:
        return blocks.get_execution_blocks(**given)
    except (NotImplementedError, ValueError):
        return blocks


def text_blocks(blocks: Any) -> list[Any]:
    """The blocks of those for the text that read it, at any depth of those that run others in a row."""
    found = blocks.sub_blocks.get(TEXT)
    row = [] if found is None else [block for _, block in one_by_one([(TEXT, found)])]
    return [block for block in row if any(name.startswith(TEXT) for name in expected_components(block))]


def text_outputs(blocks: Any) -> dict[str, Any]:
    """Name -> kind of everything that the blocks for the text give."""
    return {item.name: item.kwargs_type for block in text_blocks(blocks) for item in block.intermediate_outputs}


def text_components(blocks: Any) -> set[str]:
    """Names of the components that are loaded for the text alone: encoded texts take the place of what they do."""
    others = [block for name, block in blocks.sub_blocks.items() if name != TEXT and not name.startswith(ENHANCERS)]
    elsewhere = {name for block in others for name in expected_components(block) if not name.startswith(TEXT)}
    own = {name for block in text_blocks(blocks) for name in expected_components(block)}
    return own - elsewhere


def needed_components(blocks: Any, given: Mapping[str, Any]) -> list[str]:
    """The components that are loaded and that a call with these inputs cannot do without.

    Args:
        given: name -> value of what decides between blocks: `image`, `mask_image`, `control_image` ...
    """
    running = running_blocks(blocks, given)
    needed: dict[str, None] = {}
    for name, block in running.sub_blocks.items():
        if not name.startswith(ENHANCERS):
            needed |= dict.fromkeys(expected_components(block))
    return list(needed)


def without_enhancers(blocks: Any, loaded: Mapping[str, Any]) -> list[str]:
    """Take out the blocks that rewrite a prompt where their models are absent; returns their names."""
    dropped = []
    for name in ENHANCERS:
        block = blocks.sub_blocks.get(name)
        own = expected_components(block) if block is not None else {}
        if own and any(loaded.get(part) is None for part in own):
            blocks.sub_blocks.pop(name)
            dropped.append(name)
    return dropped
