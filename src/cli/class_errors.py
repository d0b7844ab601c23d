"""Sentences about classes of the configuration that cannot be created."""

from __future__ import annotations

import re


def missing_package(error: ModuleNotFoundError | str) -> str:
    """Message about a missing package that a class of the configuration needs."""
    text = " ".join(str(error).split())
    asked = re.search(r"pip install (?:-U )?'?([\w.\[\]-]+)", text)
    name = getattr(error, "name", None) or text
    package = asked[1] if asked else str(name).split(".")[0]
    return (
        f"A class of the configuration needs the package {package}, which is not installed. Run:"
        f" pip install {package}"
    )


def invalid_value(report: str) -> str | None:
    """Message about an invalid value, from an error of Lightning or a class, or ``None``."""
    if "is not in bounds, numpy accepts" in report:
        return f"Invalid seed_everything: {report}."
    found = re.search(r"Problem with given class_path '([\w.]+)':\n(.*)", report)
    if found is None:
        found = re.search(r"()^ {2}- (?!Expected|Not a |Problem|\()(.*)", report, re.M)
    if found is None:
        return None
    if "pip install" in found[2]:
        return missing_package(found[2])
    name, text = found[1].rpartition(".")[2], found[2].strip()
    return f"Cannot create {name}: {text}" if name else text
