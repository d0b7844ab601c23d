"""Name and address of this project, for the descriptions of exported files."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, metadata

PACKAGE = "internimage-lightning"
_ADDRESSES = ("homepage", "repository", "source", "sourcecode", "github")
"""Labels of the project's own address in ``[project.urls]``, as PyPI compares them."""


def version() -> str:
    """Version of the installed project, such as ``0.1.0``, or a note that it is not installed."""
    try:
        return metadata(PACKAGE)["Version"]
    except PackageNotFoundError:  # a copy of the sources
        return "(not installed, so its version is not known)"


def origin() -> str:
    """The project with its version and, if its metadata has one, its address.

    ``InternImage on Lightning (package `internimage-lightning` 0.1.0)``, in Markdown.
    """
    try:
        content = metadata(PACKAGE)
    except PackageNotFoundError:  # a copy of the sources that was not installed
        return f"InternImage on Lightning (package `{PACKAGE}`)"
    text = f"InternImage on Lightning (package `{PACKAGE}` {content['Version']}"
    pairs = [entry.partition(", ") for entry in content.get_all("Project-URL") or []]
    own = {label.lower().replace(" ", ""): address for label, _, address in pairs}
    found = [own[label] for label in _ADDRESSES if label in own]
    return text + (f", <{found[0]}>)" if found else ")")
