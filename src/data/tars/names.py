"""Resolve folders, patterns and URLs to a list of tars."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

from src.data.tars.files import filesystem_of, is_remote
from src.errors import UserError
from src.files import on_one_line

_MOST_TARS = 10_000_000
_INSTALL = 'pip install -c constraints.txt -e ".[pretraining]"'


def find_tars(sources: Sequence[str], out: Path) -> tuple[str, list[str]]:
    """The folder that all tars have in common, and the name of each under it, sorted.

    Args:
        sources: Tars, folders of tars, patterns with ``*`` or ``{00000..00127}``; paths or URLs.
        out: Folder of the index; the common folder of local tars is relative to it.

    Raises:
        UserError: If there is no tar, or local and remote tars are mixed.
    """
    found = sorted({url for source in sources for url in _resolved(source)})
    remote = {is_remote(url) for url in found}
    if len(remote) > 1:
        raise UserError(
            "index-tars got paths and URLs; build an index for each, and list both in data.sources."
        )
    if remote == {True}:
        protocols = {url.partition("://")[0] for url in found}
        if len(protocols) > 1:
            raise UserError(f"index-tars got URLs with different protocols: {sorted(protocols)}.")
        paths = [url.partition("://")[2] for url in found]
        folder = posixpath.commonpath([posixpath.dirname(path) for path in paths])
        names = [path[len(folder) :].lstrip("/") for path in paths]
        return f"{protocols.pop()}://{folder}", names
    common = os.path.commonpath([str(Path(url).parent) for url in found])
    names = [Path(url).relative_to(common).as_posix() for url in found]
    return os.path.relpath(common, out.absolute()), names


def _resolved(source: str) -> list[str]:
    """Absolute paths or URLs."""
    found = [url for name in _expanded(source) for url in _listed(name)]
    if not found:
        raise UserError(
            f"There are no tars at {on_one_line(source)}; expected a tar, a folder with *.tar, or a"
            " pattern such as 'shards/{00000..00127}.tar'."
        )
    return found


def _expanded(source: str) -> list[str]:
    if "{" not in source:
        return [source]
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise UserError(f"Patterns with braces need the package braceexpand: {_INSTALL}") from error
    names: list[str] = []
    try:
        for name in braceexpand(source):
            names.append(name)
            if len(names) > _MOST_TARS:
                break
    except ValueError as error:
        raise UserError(f"The braces of {on_one_line(source)} do not match.") from error
    if len(names) > _MOST_TARS:
        raise UserError(f"{on_one_line(source)} stands for more than {_MOST_TARS:,} tars.")
    return names


def _listed(name: str) -> list[str]:
    if not is_remote(name):
        path = Path(os.path.abspath(name))  # noqa: PTH100  links stay as they are
        if path.is_dir():
            return [str(entry) for entry in path.glob("*.tar")]
        if "*" not in name:
            return [str(path)]
        return [str(entry) for entry in Path("/").glob(str(path).lstrip("/"))]
    if "*" not in name and name.endswith(".tar"):
        return [name]  # listing is not possible everywhere
    filesystem, path_in_it = filesystem_of(name)
    pattern = path_in_it if "*" in name else f"{path_in_it.rstrip('/')}/*.tar"
    try:
        return [str(filesystem.unstrip_protocol(entry)) for entry in filesystem.glob(pattern)]
    except Exception as error:  # backends of fsspec raise errors of their own
        raise UserError(f"{on_one_line(name)} cannot be listed: {error}.") from error
