"""Make the table of recipes in ``model_zoo.md`` from the first comments of ``configs/``.

Run ``python docs/make_recipe_table.py`` after adding a recipe; a test compares page and files.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
CONFIGS = DOCS.parent / "configs"
PAGE = DOCS / "model_zoo.md"
_LONGEST = 200  # characters; more is cut at the first colon
START = "<!-- recipes: made by docs/make_recipe_table.py -->\n"
END = "<!-- end of recipes -->\n"


def table() -> str:
    """The tables of all tasks as Markdown."""
    parts = []
    for task in ("classification", "detection", "segmentation"):
        rows = [_row(path) for path in sorted((CONFIGS / task).glob("*.yaml"))]
        lines = [
            f"### configs/{task}\n",
            "| recipe | network and training | published | weights |",
            "| --- | --- | --- | --- |",
            *rows,
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(path: Path) -> str:
    what, published, weights = describe(path.read_text(encoding="utf-8"))
    name = f"[`{path.stem}`](../configs/{path.parent.name}/{path.name})"
    return f"| {name} | {what} | {published} | {f'`{weights}`' if weights else ''} |"


def describe(text: str) -> tuple[str, str, str]:
    """Network and training, published number and name of the weights, from a recipe's comment."""
    lines = re.match(r"(?:#.*\n)+", text)
    comment = re.sub(r"\s*\n#\s*", " ", lines[0] if lines else "").lstrip("# ").strip()
    first = re.split(r"\.\s+(?=[A-Z])|\.$|;", comment, maxsplit=1)[0]
    match = re.match(r"(.+?): published (.+)", first)
    what, published = (match[1], match[2]) if match else (first, "none")
    what = what.split(": ")[0] if len(what) > _LONGEST else what
    weights = re.search(r"validate --config \S+ --model\.weights (\S+)", comment)
    return what, published, weights[1] if weights else ""


def updated(page: str) -> str:
    """The page with a fresh table."""
    before, rest = page.split(START)
    return before + START + "\n" + table() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
