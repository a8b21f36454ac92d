"""Prompts that are longer than a text encoder reads: which encoder cuts them, and what of the text it never sees.

What a pipeline hands to its tokenizers is looked at while it runs, so templates, limits and prompts that a pipeline
rewrites first are its own. Pipelines warn of some of this in a log that nobody reads.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .types import SampleRequest

log = logging.getLogger(__name__)
SHOWN = 160
"""Characters of the part that is cut, from its beginning, in a note."""


@dataclass(frozen=True)
class Reading:
    """What one tokenizer made of one text: `limit` in tokens; `cut` is its end, "" where all of it is read."""

    tokenizer: str
    text: str
    limit: int
    cut: str


@contextmanager
def watched_texts(pipeline: Any) -> Iterator[list[Reading]]:
    """Note every text that `pipeline` hands to its tokenizers while the block runs."""
    seen: list[Reading] = []
    changed: list[tuple[Any, type]] = []
    for name, tokenizer in _tokenizers(pipeline).items():
        original = type(tokenizer)
        try:
            tokenizer.__class__ = _watching(original, name, seen)
        except TypeError:  # an object without room for it is not watched
            continue
        changed.append((tokenizer, original))
    try:
        yield seen
    finally:
        for tokenizer, original in changed:
            tokenizer.__class__ = original


def cut_notes(pipeline: Any, seen: list[Reading], request: SampleRequest) -> list[str]:
    """What to say of each prompt of a request whose end some text encoder does not read; nothing where that cannot be
    found out.

    Args:
        pipeline: what was called.
        seen: of the call.
    """
    with _left_unsaid("what was read of the prompts"):
        return _cut_notes(pipeline, seen, request)
    return []


@contextmanager
def _left_unsaid(what: str) -> Iterator[None]:
    """A note is not worth the picture: what fails while it is made is logged. Out of memory is not the note's."""
    try:
        yield
    except Exception as error:
        from ..fallback import is_out_of_memory

        if is_out_of_memory(error):
            raise
        log.debug("%s is not known", what, exc_info=True)


def _cut_notes(pipeline: Any, seen: list[Reading], request: SampleRequest) -> list[str]:
    notes = []
    for name in ("prompt", "negative_prompt"):
        prompt = getattr(request, name)
        readings: dict[str, Reading] = {}
        for reading in (reading for reading in seen if _is_part(prompt, reading.text)):
            reading = _sliced(pipeline, reading, request.max_sequence_length)
            if reading.cut or reading.tokenizer not in readings:  # some count the tokens first, without a limit
                readings[reading.tokenizer] = reading
        cut = [(reading, _own_end(reading, prompt)) for reading in readings.values()]
        whole = [_encoder(reading) for reading, end in cut if not end]
        for reading, end in cut:
            if end:
                shown = end if len(end) <= SHOWN else f"{end[: SHOWN - 3]}..."
                others = f" {' and '.join(whole)} reads all of it." if whole else ""
                notes.append(
                    f"{name}: {_encoder(reading)} reads {reading.limit} tokens, not the end: {shown!r}.{others}"
                )
    return notes


def _tokenizers(pipeline: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, part in pipeline.components.items():
        # What is called a tokenizer may be a processor (FLUX.2, Kandinsky 5), which is called with pictures first.
        tokenizer = getattr(part, "tokenizer", part if "tokenizer" in name else None)
        if callable(tokenizer) and hasattr(tokenizer, "decode") and tokenizer not in found.values():
            found[name] = tokenizer
    return found


def _watching(tokenizer_class: type, name: str, seen: list[Reading]) -> type:
    def call(self: Any, text: Any = None, *args: Any, **options: Any) -> Any:
        encoded = tokenizer_class.__call__(self, text, *args, **options)
        with _left_unsaid(f"what {name} reads of a text"):
            if options.get("truncation") and not args:
                for index, item in enumerate([text] if isinstance(text, str) else text or ()):
                    if isinstance(item, str):
                        seen.append(_read(self, tokenizer_class, name, item, encoded, index, options))
            elif isinstance(text, str) or (isinstance(text, list) and all(isinstance(item, str) for item in text)):
                seen.extend(Reading(name, item, 0, "") for item in ([text] if isinstance(text, str) else text))
        return encoded

    attributes = {
        "__call__": call,
        "__module__": tokenizer_class.__module__,
        "__qualname__": tokenizer_class.__qualname__,
    }
    return type(tokenizer_class.__name__, (tokenizer_class,), attributes)


def _read(
    tokenizer: Any, tokenizer_class: type, name: str, text: str, encoded: Any, index: int, options: dict[str, Any]
) -> Reading:
    """Compare what came back with the same text without a limit."""
    ids, mask = encoded["input_ids"], encoded.get("attention_mask")
    row, kept = (ids, mask) if isinstance(ids[0], int) else (ids[index], None if mask is None else mask[index])
    read = [int(token) for place, token in enumerate(row) if kept is None or int(kept[place])]
    special = {"add_special_tokens": options["add_special_tokens"]} if "add_special_tokens" in options else {}
    full = tokenizer_class.__call__(tokenizer, text, truncation=False, padding=False, verbose=False, **special)
    whole = [int(token) for token in full["input_ids"]]
    if len(read) >= len(whole):
        return Reading(name, text, len(read), "")
    common = next((place for place, (a, b) in enumerate(zip(read, whole, strict=False)) if a != b), len(read))
    return Reading(name, text, len(read), tokenizer.decode(whole[common:], skip_special_tokens=True).strip())


def _sliced(pipeline: Any, reading: Reading, max_tokens: int | None) -> Reading:
    """Qwen-Image reads more than `max_sequence_length` tokens, and then uses the first so many of them."""
    if not _slices(type(pipeline)):
        return reading
    default = inspect.signature(pipeline.__call__).parameters["max_sequence_length"].default
    start = getattr(pipeline, "prompt_template_encode_start_idx", 0)  # tokens of the template that are left out
    start = max(start.values()) if isinstance(start, dict) else start  # one number for each template
    limit = max_tokens or default
    tokenizer = _tokenizers(pipeline)[reading.tokenizer]
    tokens = tokenizer(reading.text)["input_ids"]
    if not limit or len(tokens) <= start + limit:
        return reading
    cut = tokenizer.decode(tokens[start + limit :], skip_special_tokens=True).strip()
    return Reading(reading.tokenizer, reading.text, limit, cut)


def _slices(pipeline_class: type) -> bool:
    try:
        source = inspect.getsource(getattr(pipeline_class, "encode_prompt", pipeline_class))
    except (OSError, TypeError):
        return False
    return ":max_sequence_length]" in source.replace(" ", "")


def _is_part(prompt: str, text: str) -> bool:
    """Whether a text is made of the prompt: pipelines strip and clean it, and put it into templates."""
    return bool(prompt.strip()) and _plain(prompt) in _plain(text)


def _plain(text: str) -> str:
    return "".join(text.split()).lower()


def _own_end(reading: Reading, prompt: str) -> str:
    """What is cut of the prompt itself, without the template around it."""
    prompt, cut = prompt.strip(), reading.cut
    behind = reading.text[reading.text.find(prompt) + len(prompt) :] if prompt in reading.text else ""
    for ending in (behind.strip(), behind.split(">")[-1].strip()):  # special tokens are not decoded
        cut = cut.removesuffix(ending).strip() if ending else cut
    return prompt if cut.endswith(prompt) else cut


def _encoder(reading: Reading) -> str:
    return reading.tokenizer.replace("tokenizer", "text_encoder").replace("processor", "text_encoder")
