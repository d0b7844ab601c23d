"""Layers import each other in one direction only (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

# A layer may import from itself, from the common modules, and from the layers listed here.
MAY_IMPORT = {
    "ops": set(),
    "types": set(),
    "errors": set(),
    "stopping": set(),
    "files": set(),
    "config_files": set(),
    "file_names": set(),
    "project": set(),
    "losses": {"types"},
    "metrics": {"types"},
    "optim": {"types"},
    "serialization": set(),
    "models": {"ops", "types", "losses", "distributed", "serialization", "runs"},
    "data": {"types", "decoding"},
    "decoding": set(),
    "visualization": {"types"},
    "environment": {"ops"},
    "profiling": {"models", "ops", "types"},
    "export": {"models", "ops", "types", "visualization", "decoding"},
    "hub": {"models", "data", "serialization", "distributed", "inference", "runs"},
    "inference": {"data", "tasks", "metrics", "serialization", "decoding", "visualization"},
    "distributed": {"serialization"},
    "runs": {"distributed", "serialization"},
    "tasks": {"models", "losses", "metrics", "optim", "types", "distributed", "serialization"},
    "strategies": {"tasks", "distributed", "serialization"},
    "callbacks": {
        "stopping",
        "runs",
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
    "hotcoco": {"metrics"},
    "onnx": {"export"},
    "onnxscript": {"export"},
    "onnxruntime": {"export"},
}
EVERYONE_MAY_IMPORT = ("errors", "files", "file_names", "config_files", "project")
ENTRY_POINTS = {"cli", "__main__", "__init__"}

# Folders inside a layer, each with the folders of that layer that it may import from.
FOLDERS = {
    "models": {
        "weights": set(),
        "layers": {"weights"},
        "internimage": {"layers", "weights"},
        "image_text": {"layers", "internimage", "weights"},
        "necks": {"layers"},
        "detection": {"layers", "internimage", "necks", "weights"},
        "segmentation": {"layers", "internimage", "weights"},
    },
    "models/detection": {"rcnn": set(), "dino": set()},
    "models/segmentation": {"mask2former": set()},
    "data": {
        "classes": {"formats"},
        "formats": set(),
        "tars": set(),
        "transforms": set(),
        "samplers": set(),
        "datasets": {"formats", "tars", "transforms"},
        "datamodules": {"datasets", "samplers", "tars", "transforms", "classes", "formats"},
        "toy": set(),
        "prepare": {"classes", "formats", "tars"},
        "verify": {"classes", "formats", "datasets", "datamodules"},
        "custom": {"classes", "formats", "datasets", "datamodules", "transforms", "verify"},
    },
}


def layer_of(path: Path) -> str:
    return path.relative_to(ROOT / "src").parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Dotted names of all imports of a file, with relative imports resolved."""
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
def test_layers_import_only_allowed_layers(path: Path) -> None:
    room = layer_of(path)
    imported = imports_of(path)
    if room not in ENTRY_POINTS:
        rooms = {name.split(".")[1] for name in imported if name.startswith("src.")}
        assert rooms <= MAY_IMPORT[room] | {room, *EVERYONE_MAY_IMPORT}
    for library, allowed in ONLY_THERE.items():
        if any(name.split(".")[0] == library for name in imported):
            assert room in allowed, f"only {sorted(allowed)} may import {library}"


def test_the_operator_imports_only_torch() -> None:
    import sys

    standard = set(sys.stdlib_module_names)
    for path in (ROOT / "src" / "ops").rglob("*.py"):
        # Triton is installed with GPU builds of PyTorch; its folder is imported only on a GPU.
        allowed = {"torch", "src", "triton"} if path.parent.name == "triton" else {"torch", "src"}
        foreign = {name.split(".")[0] for name in imports_of(path)} - standard - allowed
        assert not foreign, f"{path.name} imports {foreign}"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in SOURCES}


def modules_imported_by(path: Path) -> set[str]:
    """Modules of this project that a file imports, at the top or inside functions."""
    found = set()
    for name in imports_of(path):
        # `from a.b import c` imports the module a.b.c, or a name from the module a.b.
        module = name if name in MODULES else name.rpartition(".")[0]
        if module in MODULES:
            found.add(module)
    return found - {module_of(path)}


@pytest.mark.parametrize("room", FOLDERS)
def test_folders_import_only_allowed_folders(room: str) -> None:
    start = f"src.{room.replace('/', '.')}."
    for module, path in MODULES.items():
        folder = module.removeprefix(start).split(".")[0]
        if not module.startswith(start) or folder not in FOLDERS[room]:
            continue
        imported = {
            name.removeprefix(start).split(".")[0]
            for name in modules_imported_by(path)
            if name.startswith(start)
        }
        wrong = (imported & set(FOLDERS[room])) - FOLDERS[room][folder] - {folder}
        assert not wrong, f"{path.relative_to(ROOT)} may not import {sorted(wrong)}"


@pytest.mark.parametrize("room", FOLDERS)
def test_every_folder_has_its_rule(room: str) -> None:
    folders = {path.parent.name for path in (ROOT / "src" / room).glob("*/__init__.py")}
    assert folders == set(FOLDERS[room])


def test_there_are_no_import_cycles() -> None:
    imports = {module: modules_imported_by(path) for module, path in MODULES.items()}
    assert find_cycle(imports) is None


def find_cycle(imports: dict[str, set[str]]) -> list[str] | None:
    """A cycle of module imports, or ``None``."""
    finished: set[str] = set()

    def visit(module: str, chain: list[str]) -> list[str] | None:
        if module in chain:
            return [*chain[chain.index(module) :], module]
        if module in finished:
            return None
        circles = (visit(name, [*chain, module]) for name in sorted(imports[module]))
        circle = next((found for found in circles if found), None)
        finished.add(module)
        return circle

    return next((found for module in imports if (found := visit(module, []))), None)


def test_a_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None
