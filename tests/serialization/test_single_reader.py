"""Only ``src.serialization`` reads untrusted files; other code does not unpickle or import."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

FORBIDDEN = {
    "torch.load",
    "torch.jit.load",
    "torch.hub.load",
    "torch.hub.load_state_dict_from_url",
    "torch.package",
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "np.load",
    "numpy.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.distributed.checkpoint.filesystem.FileSystemReader",
    "safetensors.torch.load_file",
    "lightning.pytorch.cli.instantiate_module",
    "lightning.pytorch.cli.instantiate_class",
    "importlib.import_module",
    "pydoc.locate",
    "torch.export.load",
    "onnx.load",
}
"""Functions that can run code from a file, or import what a file names."""

ALLOWED = {
    # The package for untrusted files.
    "serialization/safetensors_files.py": {"safetensors.torch.load_file"},
    "serialization/parallel.py": {"torch.distributed.checkpoint.filesystem.FileSystemReader"},
    # Names in the program, not in a file.
    "cli/__init__.py": {"importlib.import_module"},
    "data/__init__.py": {"importlib.import_module"},
    "ops/_deformops.py": {"importlib.import_module"},
    # Names in the user's configuration, which may run code (SECURITY.md).
    "cli/parser_errors.py": {"importlib.import_module"},
    "cli/class_count.py": {"lightning.pytorch.cli.instantiate_module"},
    "cli/commands/plan.py": {"lightning.pytorch.cli.instantiate_module"},
    # Files written by the same command.
    "export/compare_graphs.py": {"torch.export.load"},
    "export/files.py": {"onnx.load", "torch.export.load"},
}


def used_names(path: Path) -> set[str]:
    """Dotted names imported or used by a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
            names |= {alias.name for alias in node.names}
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute):
            names.add(ast.unparse(node))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            names.add(node.func.id)
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_other_code_does_not_read_untrusted_files(path: Path) -> None:
    place = str(path.relative_to(ROOT / "src"))
    assert used_names(path) & FORBIDDEN <= ALLOWED.get(place, set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_unsafe_options_are_used(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            given = (node.arg, node.value.value)
            assert given not in {("allow_pickle", True), ("mmap", True), ("weights_only", False)}


def test_exceptions_are_needed() -> None:
    for place, names in ALLOWED.items():
        used = used_names(ROOT / "src" / place)
        assert names & used, f"{place} does not need an exception"
