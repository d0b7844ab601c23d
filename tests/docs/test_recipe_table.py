"""The table of recipes in the model zoo is what the recipes say."""

import importlib.util
from pathlib import Path

from src.models.weights.files import HUB_FILES

DOCS = Path(__file__).parents[2] / "docs"
_spec = importlib.util.spec_from_file_location("make_recipe_table", DOCS / "make_recipe_table.py")
assert _spec is not None
assert _spec.loader is not None
recipes = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipes)


def test_the_page_is_up_to_date() -> None:
    page = recipes.PAGE.read_text(encoding="utf-8")
    assert recipes.updated(page) == page, "run `python docs/make_recipe_table.py`"


def test_every_recipe_says_what_it_is() -> None:
    files = [p for p in recipes.CONFIGS.glob("*/*.yaml") if p.parent.name in recipes.table()]
    assert len(files) > 25
    for path in files:
        if path.parent.name not in ("classification", "detection", "segmentation"):
            continue
        what, published, weights = recipes.describe(path.read_text(encoding="utf-8"))
        assert 10 < len(what) < 250, path
        assert published == "none" or any(digit.isdigit() for digit in published), path
        assert not weights or weights in HUB_FILES, path
