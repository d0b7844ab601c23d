"""Make the tables of recipes and of published files in ``model_zoo.md``.

Recipes are described by the first comments of ``configs/``, published files by
``tests/fixtures/published_files.json``. Run ``python docs/make_recipe_table.py`` after adding a
recipe; a test compares the page with both.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
CONFIGS = DOCS.parent / "configs"
PAGE = DOCS / "model_zoo.md"
_LONGEST = 200  # characters; more is cut at the first colon
START = "<!-- recipes: made by docs/make_recipe_table.py -->\n"
END = "<!-- end of recipes -->\n"
FILES = DOCS.parent / "tests" / "fixtures" / "published_files.json"
FILES_START = "<!-- files: made by docs/make_recipe_table.py -->\n"
FILES_END = "<!-- end of files -->\n"


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


def table_of_files() -> str:
    """The published files as Markdown, by task and dataset."""
    entries = json.loads(FILES.read_text(encoding="utf-8"))
    parts = []
    for task, prefixes in (
        ("Classification", ("internimage", "flash_intern")),
        ("Detection", ("mask_rcnn", "cascade", "dino")),
        ("Segmentation", ("upernet", "segformer", "mask2former")),
    ):
        names = [name for name in entries if name.startswith(prefixes)]
        names.sort(key=lambda name: (entries[name]["dataset"], name))
        lines = [
            f"#### {task}\n",
            "| file | tensors | parameters | dataset | published |",
            "| --- | ---: | ---: | --- | --- |",
            *(
                f"| `{name}` | {entry['tensors']} | {entry['parameters']:,} | {entry['dataset']} |"
                f" {entry['published'] or 'none'} |"
                for name in names
                if (entry := entries[name])
            ),
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def updated(page: str) -> str:
    """The page with fresh tables."""
    for start, end, content in ((START, END, table()), (FILES_START, FILES_END, table_of_files())):
        before, rest = page.split(start)
        page = before + start + "\n" + content + "\n" + end + rest.split(end)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
