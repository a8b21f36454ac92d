"""What kind of value an argument of a call takes, by its annotation and its default, and values brought to it."""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin

from ....errors import InputError
from .schedules import SCHEDULES

ANYTHING = object()
"""The kind of an argument that says nothing of itself."""
EMPTY = inspect.Parameter.empty
"""The default of an argument that must be given."""
_NO = object()
_ENCODED = ("latents", "embeds", "embeddings", "projections", "attention_mask")
"""How the name of an argument for a tensor ends that stands for no picture."""


def check_value(form: str, name: str, hint: Any, default: Any, value: Any) -> Any:
    """The value of an argument as the call takes it: a list becomes a tuple, a whole number one with a fraction.

    Args:
        form: the class that is called.
        hint: annotation of the argument, None where it has none. `default`: its default, or `EMPTY`.

    Raises:
        InputError: the call takes another kind.
    """
    if why := _not_finite(value):
        raise InputError(f"argument {name}", value, why, "give a number")
    kinds = list(_kinds(hint, default))
    if value is None and default is not EMPTY and not {bool, int, float} & set(kinds):  # none of it at all
        return None
    if ANYTHING in kinds or (value is default and default is not None):
        return value
    found = [each for each in (_as(kind, value, default) for kind in kinds) if each is not _NO]
    if not found:
        reason = f"the call of {form} takes {' or '.join(dict.fromkeys(_words(kind) for kind in kinds))}"
        raise InputError(f"argument {name}", _shown(value), reason, _cure(name, kinds, value))
    if type(value) is type(default):  # an annotation may say float of a default that is whole
        return value
    return next((each for each in found if type(each) is type(value)), found[0])


def check_pictures(form: str, name: str, hint: Any, default: Any, count: int) -> bool:
    """Whether the call takes pictures of an argument as a list, though it be of one.

    Raises:
        InputError: it takes none there, or a single one.
    """
    kinds = list(_kinds(hint, default))
    listed = [kind for kind in kinds if get_origin(kind) is not None and _is_list(kind)]
    alone = [kind for kind in kinds if kind is ANYTHING or _is_picture(kind) or _is_tensor(kind)]
    shows = any(kind is ANYTHING or _is_picture(kind) or _lists_pictures(kind) for kind in kinds)
    if not shows and (name.endswith(_ENCODED) or not alone):
        reason = f"the call of {form} takes {' or '.join(dict.fromkeys(_words(kind) for kind in kinds))}"
        raise InputError(f"argument {name}", "a picture", reason, _cure(name, kinds, None))
    if count > 1 and alone and not listed and ANYTHING not in alone:
        raise InputError(f"argument {name}", f"{count} pictures", f"the call of {form} takes one", "give a single one")
    return not alone or count > 1


def _kinds(hint: Any, default: Any) -> Iterator[Any]:
    """The kinds that an annotation joins, and that of the default where none of them is of its form."""
    found = list(_joined(hint))
    own = type(default)
    if ANYTHING in found and (hint is not None or own not in (bool, int, float, str)):
        yield ANYTHING
        return
    if hint is None:  # one value for all, or one for each
        yield from (own,) if own is bool else (own, list)
        return
    yield from found
    forms = [get_origin(kind) or kind for kind in found]
    if default is not EMPTY and own not in forms and _alike(own).isdisjoint(forms) and _fits_none(found, default):
        yield own


def _fits_none(kinds: list[Any], value: Any) -> bool:
    return all(_as(kind, value) is _NO for kind in kinds)


def _alike(own: type) -> set[Any]:
    return {list, tuple, Sequence} if own in (list, tuple) else set()


def _joined(hint: Any) -> Iterator[Any]:
    if hint is None or hint is Any or isinstance(hint, str | ForwardRef | TypeVar):
        yield ANYTHING
    elif get_origin(hint) in (Union, types.UnionType):
        for each in get_args(hint):
            yield from _joined(each)
    else:
        yield hint


def _as(kind: Any, value: Any, default: Any = None) -> Any:
    """The value as one of that kind, `_NO` where it is none."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if kind is ANYTHING:
        return value
    if origin is Literal:
        return value if value in inner else _NO
    if kind in (bool, int, float, str, types.NoneType):
        return _plain(kind, value)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next((each for each in kind if value in (each, each.value)), _NO)
    if _is_tensor(kind):  # or several where the annotation says one, as ConsisID's does
        several = isinstance(value, list) and value and all(_is_tensor(type(each)) for each in value)
        return value if several or _is_tensor(type(value)) else _NO
    if _is_array(kind):
        return value.numpy() if _is_tensor(type(value)) else value if _is_array(type(value)) else _NO
    if _is_list(kind):
        return _as_list(origin, inner, value, default)
    if origin in (dict, Mapping):
        return _as_dict(inner, value)
    return value if isinstance(origin, type) and origin is not object and isinstance(value, origin) else _NO


def _plain(kind: type, value: Any) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    whole = kind is int and isinstance(value, bool)
    return value if isinstance(value, kind) and not whole else _NO


def _as_list(origin: Any, inner: tuple[Any, ...], value: Any, default: Any) -> Any:
    if _is_tensor(type(value)):
        kinds = [kind for each in inner for kind in _joined(each)]
        if any(_is_tensor(kind) for kind in kinds):  # of one item
            return [value]
        value = value.tolist() if value.ndim == 1 and {int, float} & set(kinds) else None
    if not isinstance(value, list | tuple):
        return _NO
    lengths = {len(inner), len(default)} if isinstance(default, tuple) else {len(inner)}
    if origin is tuple and len(inner) > 1 and inner[-1] is not Ellipsis and len(value) not in lengths:
        return _NO
    kinds = [kind for each in inner if each is not Ellipsis for kind in _joined(each)]
    if kinds and not all(any(_as(kind, each) is not _NO for kind in kinds) for each in value):
        return _NO
    return tuple(value) if origin is tuple else value


def _as_dict(inner: tuple[Any, ...], value: Any) -> Any:
    if not isinstance(value, dict):
        return _NO
    kinds = list(_joined(inner[1])) if len(inner) == 2 else [ANYTHING]
    return value if all(any(_as(kind, each) is not _NO for kind in kinds) for each in value.values()) else _NO


def _named(kind: Any, *names: str) -> bool:
    return isinstance(kind, type) and any(kind.__name__ == name for name in names)


def _is_tensor(kind: Any) -> bool:
    return (
        isinstance(kind, type)
        and kind.__module__ in ("torch", "torch.nn.parameter")
        and (kind.__name__.endswith("Tensor") or kind.__name__ == "Parameter")
    )


def _is_array(kind: Any) -> bool:
    return _named(kind, "ndarray")


def _is_picture(kind: Any) -> bool:
    return _named(kind, "Image") or _is_array(kind)


def _is_list(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    return isinstance(origin, type) and (
        (origin is not str and issubclass(origin, list | tuple | Sequence)) or origin.__name__ == "Iterable"
    )


def _lists_pictures(kind: Any) -> bool:
    return _is_list(kind) and any(
        each is ANYTHING or _is_picture(each) or _is_tensor(each) or _lists_pictures(each)
        for arg in get_args(kind) or (Any,)
        if arg is not Ellipsis
        for each in _joined(arg)
    )


def _not_finite(value: Any) -> str:
    """Why no call can reckon with a value, "" where nothing speaks against it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "it is no number that anything can be made with"
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next(filter(None, map(_not_finite, inner)), "")


def _shown(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    return value if shape is None else f"a tensor of shape {list(shape)}"


def _words(kind: Any) -> str:
    """A kind in words."""
    plain: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        types.NoneType: "null",
    }
    if kind is ANYTHING or kind in plain:
        return plain.get(kind, "anything")
    inner = [each for arg in get_args(kind) if arg is not Ellipsis for each in _joined(arg)]
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(repr(each.value) for each in kind)
    if _is_tensor(kind):
        return "a tensor"
    if _is_picture(kind):
        return "a picture"
    if _is_list(kind):
        return _list_in_words(kind, inner)
    if (get_origin(kind) or kind) in (dict, Mapping):
        return "an object of names and values"
    if get_origin(kind) is not None or kind is Callable:
        return "a function"
    return f"a {getattr(kind, '__name__', 'value')} of diffusers"


def _list_in_words(kind: Any, inner: list[Any]) -> str:
    fixed = get_origin(kind) is tuple and len(inner) > 1 and Ellipsis not in get_args(kind)
    what = " or ".join(dict.fromkeys(_several(each) for each in inner if each is not ANYTHING))
    start = f"a list of {len(inner)}" if fixed else "a list"
    return f"{start}{'' if fixed else ' of'} {what}" if what else start


def _several(kind: Any) -> str:
    words = _words(kind)
    if words == "text":
        return "texts"
    article, _, rest = words.partition(" ")
    return (
        f"{rest.removesuffix('s')}s"
        if article in ("a", "an") and " of " not in rest
        else words.replace("a list", "lists")
    )


def _cure(name: str, kinds: list[Any], value: Any) -> str:
    """How a value of the kinds that are taken is written."""
    if isinstance(value, float) and value.is_integer() and int in kinds:
        return f"write {name}={int(value)}"
    if str in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return f'write it in quotation marks: {name}="{value}"'
    for kind in kinds:
        if example := (_is_list(kind) and SCHEDULES.get(name)) or _example(kind):
            return f"write {name}={example}"
    if "picture" in " ".join(map(_words, kinds)):
        return f"give a picture: the node's image, or {name}=@FILE on the command line"
    if any("tensor" in _words(kind) for kind in kinds):
        return f"give a tensor: {name}=@FILE.safetensors on the command line"
    return "leave it out"


def _example(kind: Any) -> str:
    """A value of a kind as it is written, "" for one that cannot be."""
    plain = {bool: "true", int: "2", float: "0.5", str: '"text"'}
    if kind in plain:
        return plain[kind]
    if get_origin(kind) is Literal:
        return str(get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return str(next(iter(kind)).value)
    if (get_origin(kind) or kind) in (dict, Mapping):
        return '{"NAME": VALUE}'
    if not _is_list(kind):
        return ""
    inner = [next(_joined(arg)) for arg in get_args(kind) if arg is not Ellipsis]
    each = [_example(arg) if arg is not ANYTHING else "1" for arg in inner]
    if not each:
        return "[1, 2]"
    return f"[{', '.join(each if len(each) > 1 else each * 2)}]" if all(each) else ""
