"""docs/architecture.md sends its readers to files that exist and define what they are named for."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
TABLE = PAGE.split("## Where is ...?")[1].split("## Design decisions")[0]
ROWS = [row for row in TABLE.splitlines() if row.startswith("| ") and "`" in row]


def defined_in(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_rows_name_the_file_that_defines_it(row: str) -> None:
    _, _, files, names, _ = row.split("|")
    paths = [ROOT / name for name in re.findall(r"`([^`]+)`", files)]
    assert paths
    assert all(path.exists() for path in paths)
    for name in re.findall(r"`([^`]+)`", names):
        assert name in defined_in(paths[0]), f"{paths[0]} does not define {name}"


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:src|tests|configs)/[^`*]+)`", PAGE))))
def test_every_path_exists(name: str) -> None:
    assert (ROOT / name).exists()
