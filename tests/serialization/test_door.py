"""Files of strangers have one door: ``src.serialization``. Nothing else unpickles or imports."""

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
"""Names that read what a file says to run, or make what a file names."""

ALLOWED = {
    # The one door.
    "serialization/safetensors_files.py": {"safetensors.torch.load_file"},
    "serialization/parallel.py": {"torch.distributed.checkpoint.filesystem.FileSystemReader"},
    # Names that stand in the program, not in a file.
    "cli/__init__.py": {"importlib.import_module"},
    "data/__init__.py": {"importlib.import_module"},
    "ops/_deformops.py": {"importlib.import_module"},
    # Names in the user's own configuration, which is a program (SECURITY.md).
    "cli/parser_errors.py": {"importlib.import_module"},
    "cli/commands/plan.py": {"lightning.pytorch.cli.instantiate_module"},
    # Files that the same command has just written.
    "export/compare.py": {"torch.export.load"},
    "export/files.py": {"onnx.load", "torch.export.load"},
}


def used_names(path: Path) -> set[str]:
    """Dotted names that a file imports or uses."""
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
def test_nothing_else_opens_what_a_file_may_run(path: Path) -> None:
    place = str(path.relative_to(ROOT / "src"))
    assert used_names(path) & FORBIDDEN <= ALLOWED.get(place, set())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled_or_mapped_by_an_option(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            given = (node.arg, node.value.value)
            assert given not in {("allow_pickle", True), ("mmap", True), ("weights_only", False)}


def test_exceptions_name_files_that_need_them() -> None:
    for place, names in ALLOWED.items():
        used = used_names(ROOT / "src" / place)
        assert names & used, f"{place} needs no exception any more"
