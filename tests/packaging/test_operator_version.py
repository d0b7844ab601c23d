"""Version of the package of the operators alone: that of its module."""

import runpy
import subprocess
import sys
from pathlib import Path

from src import ops

ROOT = Path(__file__).parents[2]
METADATA = "from setuptools import build_meta as b; b.prepare_metadata_for_build_wheel('metadata')"


def test_the_package_has_the_version_of_its_module(tmp_path):
    build = runpy.run_path(str(ROOT / "packaging/dcnv3_ops/build.py"))
    build["assemble"](tmp_path)
    init = tmp_path / "dcnv3_ops/__init__.py"
    text = init.read_text(encoding="utf-8")
    changed = text.replace(f'__version__ = "{ops.__version__}"', '__version__ = "7.8.9"')
    init.write_text(changed, encoding="utf-8")
    (tmp_path / "metadata").mkdir()
    subprocess.run([sys.executable, "-c", METADATA], cwd=tmp_path, check=True, capture_output=True)
    (written,) = (tmp_path / "metadata").glob("*.dist-info/METADATA")
    assert "Name: dcnv3-ops\nVersion: 7.8.9\n" in written.read_text(encoding="utf-8")
