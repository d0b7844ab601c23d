"""The rooms of the project depend on each other in one direction only (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

# A room may import from itself, from the rooms that everyone may import, and from those listed.
MAY_IMPORT = {
    "ops": set(),
    "types": set(),
    "errors": set(),
    "stopping": set(),
    "files": set(),
    "file_names": set(),
    "losses": {"types"},
    "metrics": {"types"},
    "optim": {"types"},
    "serialization": set(),
    "models": {"ops", "types", "losses", "distributed", "serialization"},
    "data": {"types", "decoding"},
    "decoding": set(),
    "visualization": {"types"},
    "environment": {"ops"},
    "export": {"models", "ops"},
    "hub": {"models", "data", "serialization"},
    "distributed": {"serialization"},
    "tasks": {"models", "losses", "metrics", "optim", "types", "distributed", "serialization"},
    "strategies": {"tasks", "distributed", "serialization"},
    "callbacks": {
        "stopping",
        "strategies",
        "serialization",
        "distributed",
        "tasks",
        "types",
        "visualization",
        "decoding",
        "optim",
        "environment",
        "ops",
        "metrics",
    },
}
ONLY_THERE = {
    "lightning": {"cli", "tasks", "strategies", "callbacks", "data"},
    "albumentations": {"data"},
    "pycocotools": {"data", "metrics"},
    "onnx": {"export"},
    "onnxscript": {"export"},
    "onnxruntime": {"export"},
}
EVERYONE_MAY_IMPORT = ("errors", "files", "file_names")
ENTRY_POINTS = {"cli", "__main__", "__init__"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "src").parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything a file imports, relative imports resolved."""
    package = ["src", *path.relative_to(ROOT / "src").parts[:-1]]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    room = room_of(path)
    imported = imports_of(path)
    if room not in ENTRY_POINTS:
        rooms = {name.split(".")[1] for name in imported if name.startswith("src.")}
        assert rooms <= MAY_IMPORT[room] | {room, *EVERYONE_MAY_IMPORT}
    for library, allowed in ONLY_THERE.items():
        if any(name.split(".")[0] == library for name in imported):
            assert room in allowed, f"only {sorted(allowed)} may import {library}"


def test_the_operator_needs_nothing_but_torch() -> None:
    import sys

    standard = set(sys.stdlib_module_names)
    for path in (ROOT / "src" / "ops").rglob("*.py"):
        # Triton comes with PyTorch where there can be a GPU; its folder is imported on one only.
        allowed = {"torch", "src", "triton"} if path.parent.name == "triton" else {"torch", "src"}
        foreign = {name.split(".")[0] for name in imports_of(path)} - standard - allowed
        assert not foreign, f"{path.name} imports {foreign}"
