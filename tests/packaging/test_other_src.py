"""An installed wheel and another package `src` do not hide each other silently."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folders(tmp_path):
    """`site` has the files of a wheel that decide, `own` a package `src` of the user."""
    site, own = tmp_path / "site", tmp_path / "own"
    for folder in (site, own):
        (folder / "src").mkdir(parents=True)
    shutil.copy(ROOT / "src/__init__.py", site / "src")
    shutil.copy(ROOT / "internimage_lightning.py", site)
    (own / "src/train.py").touch()
    return site, own


def run(code, *path):
    command = f"import sys; sys.path[:1] = {list(map(str, path))}; {code}"
    return subprocess.run(
        [sys.executable, "-E", "-S", "-c", command], capture_output=True, text=True, check=False
    )


def test_warning_if_the_wheel_hides_another_src(folders):
    site, own = folders
    result = run("import src", site, own)
    assert result.returncode == 0
    expected = f"`import src` imports internimage-lightning from {site / 'src'}, not {own / 'src'};"
    assert expected in result.stderr


def test_no_warning_if_there_is_no_other_src(folders):
    site, own = folders
    shutil.rmtree(own / "src")
    result = run("import src", site, own)
    assert (result.returncode, result.stderr) == (0, "")


def test_error_of_the_command_if_another_src_hides_the_wheel(folders):
    site, own = folders
    (own / "src/__init__.py").touch()
    result = run("import internimage_lightning; sys.exit(internimage_lightning.main())", own, site)
    assert result.returncode == 2
    expected = f"error: `import src` finds {own / 'src'}, not the package src of"
    assert result.stderr.startswith(expected)
    assert result.stderr.count("\n") == 1
