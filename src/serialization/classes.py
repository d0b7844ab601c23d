"""Build objects described in a file, from known classes with validated arguments.

Like a configuration, a file gives a class as ``class_path`` and its arguments as ``init_args``. But
unlike a configuration of the user, a file is untrusted. Therefore nothing is imported: the name is
looked up among the subclasses that are already imported, and arguments must match the annotations
of the constructor, within limits.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from src.errors import UserError
from src.serialization.former_names import with_present_names
from src.serialization.limits import Refusal, shown, shown_repr

PREFIXES = ("src.models.", "src.losses.", "src.metrics.", "src.optim.", "torch.optim.")
"""Modules whose classes a file may name."""
LARGEST = 2**20
"""Largest integer argument."""
_LARGEST_NUMBER = 1e9
_LENGTH = 256  # of lists and dictionaries
_TEXT = 4096
_NESTING = 8
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BOUNDS = {
    "kernel_size": 31,
    "dw_kernel_size": 31,
    "depths": 200,
    "encoder_layers": 100,
    "decoder_layers": 100,
    "num_convs": 100,
    "pool_scales": 100,
    "in_chans": 1024,
    "ffn_parts": 100,
}
"""Maximum of arguments that determine the size of a network."""


def make_factory(spec: Any, base: type, where: str) -> Callable[..., Any]:
    """Factory for an object described by ``class_path`` and ``init_args``.

    Args:
        spec: Description in the file.
        base: Required base class.
        where: File and key, for messages.

    Raises:
        UserError: If the class is unknown or an argument is invalid.
    """
    try:
        return _factory(spec, base, where, 0)
    except Refusal as error:
        raise UserError(f"{error}.") from None


def check_arguments(owner: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Validate the arguments of a known class, and create the factories in them.

    Raises:
        UserError: If an argument is invalid.
    """
    try:
        return _arguments(owner, given, where, 0)
    except Refusal as error:
        raise UserError(f"{error}.") from None


def find_class(path: Any, base: type) -> type | None:
    """Find a class of this project by its name or full path, without importing anything."""
    if not isinstance(path, str):
        return None
    module, _, name = path.rpartition(".")
    for found in _subclasses(base):
        full = f"{found.__module__}."
        matches = full.startswith(PREFIXES) and (not module or full.startswith(f"{module}."))
        # A short module such as "src" is not allowed.
        if found.__name__ == name and matches and (not module or f"{module}.".startswith(PREFIXES)):
            return found
    return None


def _factory(spec: Any, base: type, where: str, depth: int) -> Callable[..., Any]:
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, Mapping) or not set(spec) <= {"class_path", "init_args"}:
        raise Refusal(f"{where}: expected a class_path with init_args, got {shown(spec)!r}")
    if depth > _NESTING:
        raise Refusal(f"{where} is nested too deeply")
    path, given = spec.get("class_path"), spec.get("init_args")
    found = find_class(path, base)
    if found is None:
        raise Refusal(
            f"{where} is {shown_repr(path)}, and there is no such class in this project;"
            " expected a class of src.models"
        )
    if not isinstance(given, Mapping | None):
        raise Refusal(f"{where}.init_args: expected a dictionary, got {shown(given)!r}")
    return partial(found, **_arguments(found, given or {}, where, depth + 1))


def _arguments(owner: type, given: Mapping[str, Any], where: str, depth: int) -> dict[str, Any]:
    annotations = _annotations(owner)
    checked = {}
    for name, value in with_present_names(owner, given).items():
        if name not in annotations:
            raise Refusal(f"{where}: {owner.__name__} has no argument {shown(name)!r}")
        checked[name] = _value(annotations[name], value, f"{where}.{name}", depth)
        _check_bound(name, checked[name], where)
    return checked


@cache
def _annotations(owner: type) -> dict[str, Any]:
    """Annotations of the constructor, including arguments that it passes to its base class."""
    found: dict[str, Any] = {}
    for cls in inspect.getmro(owner):
        constructor = vars(cls).get("__init__")
        if constructor is None:
            continue
        hints = get_type_hints(constructor)
        parameters = inspect.signature(constructor).parameters
        for name, parameter in parameters.items():
            if parameter.kind in _NAMED and name != "self":
                found.setdefault(name, hints.get(name, Any))
        keywords = unpacked_keywords(constructor)
        found = {**keywords, **found}
        if keywords or all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def unpacked_keywords(constructor: Callable[..., Any]) -> dict[str, Any]:
    """Names and types of keyword arguments annotated as ``**kwargs: Unpack[...]``."""
    for parameter in inspect.signature(constructor).parameters.values():
        annotation = parameter.annotation
        if parameter.kind is parameter.VAR_KEYWORD and "Unpack[" in str(annotation):
            annotation = get_type_hints(constructor)[parameter.name]
            return get_type_hints(get_args(annotation)[0])
    return {}


def _check_bound(name: str, value: Any, where: str) -> None:
    bound = _BOUNDS.get(name)
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if bound is not None and any(isinstance(n, int) and n > bound for n in numbers):
        raise Refusal(f"{where}.{name}: expected at most {bound}, got {shown(value)}")


def _value(annotation: Any, value: Any, where: str, depth: int) -> Any:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return _one_of(parts, value, where, depth)
    if origin is Literal:
        if any(value == part and type(value) is type(part) for part in parts):
            return value
        raise Refusal(f"{where}: expected one of {parts}, got {shown_repr(value)}")
    if annotation is None or annotation is type(None):
        if value is None:
            return None
    elif origin is not None and origin is get_origin(Callable[[], Any]):
        result = parts[-1]
        if isinstance(result, type):
            return _factory(value, result, where, depth)
        if get_origin(result) in (Union, types.UnionType):
            factories = tuple(Callable[..., option] for option in get_args(result))
            return _one_of(factories, value, where, depth)
    elif origin in (list, tuple, Sequence):
        return _sequence(origin, parts, value, where, depth)
    elif annotation is Any:
        if isinstance(value, (list, tuple)):
            return _sequence(list, (Any,), value, where, depth + 1)
        return _scalar(value, where)
    elif annotation in (bool, int, float, str):
        expected = (int, float) if annotation is float else annotation
        if isinstance(value, expected) and (annotation is bool or not isinstance(value, bool)):
            return _scalar(float(value) if annotation is float else value, where)
    raise Refusal(f"{where}: expected {_readable(annotation)}, got {shown_repr(value)}")


def _one_of(options: tuple[Any, ...], value: Any, where: str, depth: int) -> Any:
    reasons = []
    for option in options:
        try:
            return _value(option, value, where, depth)
        except Refusal as error:
            reasons.append(error)
    # The longest message is from the option that is closest to the value.
    raise max(reasons, key=lambda reason: len(str(reason)))


def _sequence(origin: Any, parts: Any, value: Any, where: str, depth: int) -> Any:
    if not isinstance(value, (list, tuple)) or len(value) > _LENGTH or depth > _NESTING:
        raise Refusal(f"{where}: expected a list of at most {_LENGTH} values, got {shown(value)!r}")
    if origin is tuple and Ellipsis not in parts:
        if len(value) != len(parts):
            raise Refusal(f"{where}: expected {len(parts)} values, got {shown(value)!r}")
        kinds = list(parts)
    else:
        kinds = [parts[0] if parts else Any] * len(value)
    items = [_value(k, v, where, depth + 1) for k, v in zip(kinds, value, strict=True)]
    return tuple(items) if origin is tuple else items


def _scalar(value: Any, where: str) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and abs(value) <= LARGEST:
        return value
    if isinstance(value, float) and math.isfinite(value) and abs(value) <= _LARGEST_NUMBER:
        return value
    if isinstance(value, str) and len(value) <= _TEXT and value.isprintable():
        return value
    raise Refusal(f"{where} is {shown_repr(value)}, which exceeds the limits")


def _readable(annotation: Any) -> str:
    plain = {int: "an integer", float: "a number", str: "text", bool: "true or false", None: "null"}
    if annotation is type(None):
        return "null"
    return plain.get(annotation, shown(str(annotation).replace("typing.", "")))


def _subclasses(base: type) -> Iterator[type]:
    seen: set[type] = set()
    waiting = [base]
    while waiting:
        cls = waiting.pop(0)
        if cls not in seen:
            seen.add(cls)
            yield cls
            waiting += type.__subclasses__(cls)
