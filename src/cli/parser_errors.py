"""One-line messages for parser errors: which key is wrong and what is expected.

jsonargparse reports every alternative that it tried together with the complete value. The functions
here extract the cause from that report. An unknown report is shortened, never dropped.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from src.cli.arguments import GIVE_RECIPE, settings_of_nothing
from src.cli.misspellings import OPTIONS, needed_value
from src.cli.other_names import answer_for, no_such_option
from src.cli.suggestions import closest, suggest
from src.file_names import similar_file

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS_PATH = re.compile(r"class_path '([\w.]+)'|class_path='([\w.]+)'")
_GIVEN_CLASS = re.compile(
    r"Got value: Namespace\((?:init_args=NestedArg\(.*?\), )?class_path='([\w.]+)'"
)
_PLAIN = {"NoneType": "null", "str": "text", "int": "an integer", "float": "a number"}
_MAX_LENGTH = 400
_MAX_LIST = 6
_MAX_OWNERS = 3
_BASES = {"BaseTask", "DenseTask"}
_EXPECTED = {
    "trainer.precision": "32-true, bf16-mixed, 16-mixed, bf16-true, 16-true or 64-true",
}
"""What a setting accepts, where its annotation lists former names as well."""
_FILLED_IN = {"self", "num_classes", "params"}  # arguments set by the program


def explain(message: str, parser: Any) -> str:
    """Short explanation of a parser error.

    Args:
        message: Text of the error.
        parser: Parser that raised it, to look up the accepted options.

    Returns:
        Text without line breaks.
    """
    for reader in _READERS:
        explanation = reader(message, parser)
        if explanation:
            return explanation
    text = " ".join(message.split())
    return text if len(text) <= _MAX_LENGTH else text[:_MAX_LENGTH] + " ..."


def _missing_file(message: str, parser: Any) -> str | None:
    match = re.search(r"File does not exist: '?([^'\n]+)'?", message)
    return f"The configuration file {match[1]} does not exist." if match else None


def _unknown_setting(message: str, parser: Any) -> str | None:
    match = re.search(r"Option '([\w.]+)' is not accepted", message)
    if not match:
        return None
    name, owner = match[1], _innermost_class(message)
    known = sorted(setting_names(owner)) if owner is not None else []
    subject = owner.__name__ if owner is not None else "This class"
    answer = answer_for(name)
    if name not in known and answer and answer.split()[0] != f"--{_join(message, name)}":
        return f"{subject} has no setting {_join(message, name)!r}. Use {answer}."
    if owner is not None and (inside := _setting_of_part(name, owner)) is not None:
        return f"{subject} has no setting {_join(message, name)!r}. Use --{_join(message, inside)}."
    if owner is not None and (others := _classes_with(name, owner)):
        return (
            f"{subject} has no setting {_join(message, name)!r}; it is a setting of"
            f" {', '.join(others[:_MAX_OWNERS])}{', ...' if len(others) > _MAX_OWNERS else '.'}"
        )
    hint = suggest(name, [_join(message, other) for other in known]) or (
        f" Its settings are {', '.join(known)}." if known else ""
    )
    return f"{subject} has no setting {_join(message, name)!r}.{hint}"


def _setting_of_part(name: str, owner: type) -> str | None:
    """The setting of this name of a part of a network: ``backbone.variant`` of a detector."""
    for part in sorted(setting_names(owner)):
        kind = _class_in(_annotation(owner, part))
        if kind is not None and kind.__module__.startswith("src.") and name in setting_names(kind):
            return f"{part}.{name}"
    return None


def _classes_with(name: str, owner: type) -> list[str]:
    """Other data modules or tasks that have a setting."""
    from src.data.datamodules import BaseDataModule
    from src.tasks import BaseTask

    base = next((base for base in (BaseDataModule, BaseTask) if issubclass(owner, base)), None)
    siblings = () if base is None else _subclasses(base)
    return sorted({cls.__name__ for cls in siblings if name in setting_names(cls)} - _BASES)


def _unknown_option(message: str, parser: Any) -> str | None:
    match = re.search(r"does not accept option '([\w.]+)'", message)
    match = match or re.search(r"unrecognized arguments: (-*[\w.]+[\w.-]*)", message)
    if not match:
        return None
    owner = _innermost_class(message)
    if owner is not None and "unrecognized arguments" in match[0]:
        return _unknown_group(_join(message), match[1].lstrip("-"), owner)
    if (answer := no_such_option(match[1])) is not None:
        return answer
    name = match[1].lstrip("-")
    known = [key for key in vars(parser.get_defaults().as_flat()) if key != "help"]
    groups = sorted({key.split(".")[0] for key in known})
    inside = [key for key in known if key.startswith(f"{name.split('.')[0]}.")]
    choices = inside or [*groups, *known, *OPTIONS, *_task_and_data_settings()]
    hint = suggest(name, choices, option=True) or " See --help."
    return f"There is no setting {name!r}.{hint}"


def _unknown_group(parent: str, name: str, owner: type) -> str:
    """Message about settings below one that a class does not have.

    Args:
        parent: Setting that the class is given for, for example ``model``.
        name: The unknown setting and what follows, for example ``networ.variant``.
        owner: The class.
    """
    known = sorted(setting_names(owner))
    group, _, rest = name.partition(".")
    option = f"--{parent}.{name}"
    if (found := closest(group, known)) is not None:
        meant = ".".join(filter(None, (parent, found, rest)))
        return f"There is no option {option}. Did you mean --{meant}?"
    return no_such_option(option) or (
        f"{owner.__name__} has no setting {f'{parent}.{group}'!r}. Its settings are"
        f" {', '.join(known)}."
    )


def _task_and_data_settings() -> list[str]:
    """Settings of all tasks and data modules."""
    from src.data.datamodules import BaseDataModule
    from src.tasks import BaseTask

    found = set()
    for base, prefix in ((BaseTask, "model"), (BaseDataModule, "data")):
        for owner in _subclasses(base):
            found |= {f"{prefix}.{name}" for name in setting_names(owner)}
    return sorted(found)


def _missing_value(message: str, parser: Any) -> str | None:
    match = re.search(r"argument (?:-\w/)?--([\w.+]+): expected (?:one|at least one) arg", message)
    if not match:
        return None
    return needed_value(f"--{match[1]}")


def _folder_as_config(message: str, parser: Any) -> str | None:
    match = re.search(r"Path is not a file: '?([^'\n]+?)'?(?:\n|$)", message)
    if not match:
        return None
    folder = Path(match[1])
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    inside = sorted(path.name for path in folder.glob("*.yaml"))
    which = f": {folder / inside[0]}" if len(inside) == 1 else f" ({', '.join(inside[:5])})"
    advice = f"give the .yaml in it{which}" if inside else "give a .yaml file"
    return f"{folder} is a folder; {advice}."


def _missing_component(message: str, parser: Any) -> str | None:
    """A missing file of a component, such as ``--model.network configs/model/x.yaml``."""
    for text in re.findall(r"[\w./~-]+\.ya?ml\b", message):
        if not Path(text).exists():
            return f"There is no file {text}.{similar_file(text)}"
    return None


def _abstract_class(message: str, parser: Any) -> str | None:
    match = re.search(r"([\w.]+) is abstract", message)
    if match is None or _load(match[1]) is None:
        return None
    return settings_of_nothing(_join(message))


def _unknown_class(message: str, parser: Any) -> str | None:
    match = re.search(r"Expected a dot import path string: ([\w.]+)", message)
    if not match:
        match = re.search(r"(?:Unexpected import path format|No module named) '?([\w.]+)", message)
    base = _expected_base(message)
    if not match or base is None:
        return None
    if re.search(r"Subtypes: \[<class '(?:float|int)'>", message):
        return f"{_join(message)}: expected a number, got {match[1]!r}."
    known = sorted({cls.__name__ for cls in _subclasses(base)} - _BASES)
    if re.fullmatch(r"internimage_\w+", match[1]):
        return (
            f"{_join(message)}: there is no class {match[1]!r}. For a variant, use"
            f" --model.network.variant {match[1]}."
        )
    if _join(message) == "data" and Path(match[1]).is_dir():
        return (
            f"--data expects a class; use --data.root {match[1]} for the folder of a dataset, or"
            f" --data.predict_dir {match[1]} for images to predict."
        )
    close = suggest(match[1], known)
    names = (
        f"{', '.join(known)}, or" if not close and len(known) <= _MAX_LIST else "a class name or"
    )
    return (
        f"{_join(message)}: there is no class {match[1]!r}.{close} Expected {names} an import path."
    )


def _missing_setting(message: str, parser: Any) -> str | None:
    match = re.search(r"the following arguments are required: ([\w., ]+)", message)
    if not match:
        return None
    owner = _innermost_class(message)
    if owner is None:
        names = [name.split(".")[-1] for name in match[1].split(", ")]
        return f"Missing settings: {' and '.join(sorted(names))}. {GIVE_RECIPE}"
    return f"{_join(message)}: {owner.__name__} needs a value for {match[1]}."


def _wrong_value(message: str, parser: Any) -> str | None:
    wanted = re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", message)
    given = re.findall(r"(?:Got|Given) value: ([^\n]+?)(?:\. Got value|\n|$)", message)
    # An alternative that failed is reported with all that surrounds the value.
    given = [v for v in given if not v.startswith(("Namespace(", "NestedArg("))] or given
    if not wanted or not given:
        return None
    keys = list(dict.fromkeys(_KEY.findall(message)))
    owners = (_innermost_class(message), _last_class(message)) if len(keys) > 1 else ()
    found = (_annotation(owner, keys[-1]) for owner in owners if owner is not None)
    annotation = next((a for a in found if a is not None), None)
    below = re.match(r"NestedArg\(key='([\w.]+)'", given[0])
    text = " or ".join(dict.fromkeys(_readable_type(name) for name in wanted))
    text = text if annotation is None else _readable_annotation(annotation)
    text = _EXPECTED.get(_join(message), text)
    if below is not None:
        return f"There is no setting {_join(message, below[1])!r}; {_join(message)} is {text}."
    return f"{_join(message)} must be {text}, got {given[0].strip()!r}."


_READERS: tuple[Callable[[str, Any], str | None], ...] = (
    _missing_value,
    _folder_as_config,
    _missing_file,
    _abstract_class,
    _unknown_setting,
    _unknown_option,
    _missing_component,
    _unknown_class,
    _missing_setting,
    _wrong_value,
)


def setting_names(owner: type) -> set[str]:
    """Names of the constructor arguments of a class, including those passed by ``**kwargs``."""
    names: set[str] = set()
    for cls in inspect.getmro(owner):
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        names |= (keywords := _unpacked_keywords(vars(cls)["__init__"])).keys()
        if keywords or all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return names - _FILLED_IN


def _join(message: str, name: str = "") -> str:
    """Full key of the setting in a report."""
    keys = dict.fromkeys(_KEY.findall(message))  # in order, without repetitions
    return ".".join([*keys, name] if name else keys) or "the configuration"


def _innermost_class(message: str) -> type | None:
    # Functions that return a class are reported from the inside to the outside, others reversed.
    if (first := _GIVEN_CLASS.search(message)) is not None:
        return _load(first[1])
    return _last_class(message)


def _last_class(message: str) -> type | None:
    found = [path for pair in _CLASS_PATH.findall(message) for path in pair if path]
    return _load(found[-1]) if found else None


def _expected_base(message: str) -> type | None:
    """The base class that a value is expected to have."""
    keys, owner = list(dict.fromkeys(_KEY.findall(message))), _innermost_class(message)
    if owner is not None and len(keys) > 1:
        return _class_in(_annotation(owner, keys[-1]))
    found = re.findall(r"Subtypes: \[(?:list\[|<class ')([\w.]+)", message)
    return _load(found[0]) if found else None


def _annotation(owner: type, setting: str) -> Any:
    """Annotation of a constructor argument, or ``None``."""
    for cls in inspect.getmro(owner):
        constructor = vars(cls).get("__init__")
        if constructor and setting in inspect.signature(constructor).parameters:
            return get_type_hints(constructor).get(setting)
        if constructor and setting in (keywords := _unpacked_keywords(constructor)):
            return keywords[setting]
    return None


def _unpacked_keywords(constructor: Callable[..., Any]) -> dict[str, Any]:
    from src.serialization.classes import unpacked_keywords  # late, because it imports torch

    return unpacked_keywords(constructor)


def _class_in(annotation: Any) -> type | None:
    """First class in an annotation; for a callable, its return type."""
    if get_origin(annotation) is Callable:
        return _class_in(get_args(annotation)[-1])
    found = (_class_in(part) for part in get_args(annotation))
    return annotation if isinstance(annotation, type) else next((c for c in found if c), None)


def _load(path: str) -> type | None:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return None
    return found if isinstance(found, type) else None


def _subclasses(base: type) -> Iterable[type]:
    if not inspect.isabstract(base) and not base.__name__.startswith("_"):
        yield base
    children: list[type] = type.__subclasses__(base)
    for child in children:
        yield from _subclasses(child)


def _readable_type(text: str) -> str:
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text.strip())
    if text.startswith("typing.Literal"):
        return "one of " + text[len("typing.Literal[") : -1]
    return _PLAIN.get(text, text.replace("typing.", ""))


def _readable_annotation(annotation: Any) -> str:
    parts = get_args(annotation)
    if get_origin(annotation) is Callable:
        return _readable_annotation(parts[-1])
    if not parts:
        return _readable_type(f"<class '{getattr(annotation, '__name__', annotation)}'>")
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(repr, parts))
    names = [_readable_annotation(part) for part in parts if part is not Ellipsis]
    if get_origin(annotation) in (list, tuple):
        more = ", ..." if Ellipsis in parts or get_origin(annotation) is list else ""
        return f"[{', '.join(names)}{more}]"
    return " or ".join(names)
