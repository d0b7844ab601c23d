"""Code and documentation use the usual terms of the field instead of private ones."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORDS = {
    r"pictures?(?![a-z])": "image",
    r"\bdata sets?\b": "dataset",
    r"\bstart values?\b|\bstarts? fresh\b": "initial values, (randomly) initialised",
    r"\btrunk\b": "backbone",
    r"\bfigures\b(?! of)": "numbers, results, metrics, plots",
    r"\bofficially\b": "as in the official code",
    r"\b(expected|accepted) (is|are)\b": "expected X, got Y",
    r"\bwithout duplicates\b": "after NMS",
    r"\bway of an? image\b": "forward pass",
    r"\bmap the maps\b|\b(all|its|their|four|the) maps\b": "feature maps",
    r"\bweights in training\b": "raw weights",
    r"(?<!exponential )\bmoving average\b": "EMA weights",
    r"\bobjects to learn\b": "ground-truth boxes, annotations",
    r"\bby formula\b": "deterministic",
    r"\boracle\b": "reference",
    r"\bloader processe?s?\b": "data loader worker",
    r"\bother processes of (this|the) run\b|\bfirst process\b": "rank",
    r"\bgo(es)? on\b|\banew\b": "continue, resume, again",
    r"\bmistakes?\b|\bin one sentence\b": "error, one-line error",
    r"\bstrangers?\b": "untrusted",
    r"\bthis room\b|\brooms\b|\bfront door\b": "package, layer, command line",
    r"\bcannot be made\b": "cannot create",
    r"\bours\b|\btheirs\b|\bhelp_\b": "the name of its role, `of this project`",
}
"""Private terms as regular expressions, with the usual terms."""

FORMER_NAMES = (
    "max_pictures",
    "--pictures",
    '"pictures"',
    "pictures_per_batch",
    "Pretrained.pictures",
    "The file `trunk` of Mask R-CNN",
    "bookshelf, picture, counter",
    "truffle_(chocolate), trunk, vat",
    "Sword, Picture frame, Sushi",
)
"""Names that users may still have in configurations, checkpoints, scripts; classes of datasets."""


def texts() -> Iterator[tuple[Path, list[str]]]:
    """Files of code and documentation with their lines."""
    folders = {"src": "py", "docs": "md", "configs": "yaml", "notebooks": "ipynb"}
    for folder, extension in folders.items():
        for path in sorted((ROOT / folder).rglob(f"*.{extension}")):
            yield path, path.read_text(encoding="utf-8").splitlines()
    yield ROOT / "README.md", (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    end = changes.find("\n## ", changes.index("## Unreleased") + 1)
    yield ROOT / "CHANGELOG.md", changes[: end if end >= 0 else None].splitlines()


def private_terms(path: Path, lines: list[str]) -> list[str]:
    """One message per private term: file, line, term and the usual term."""
    found = []
    for number, line in enumerate(lines, 1):
        for name in FORMER_NAMES:
            line = line.replace(name, "")
        for pattern, better in WORDS.items():
            for match in re.finditer(pattern, line, re.IGNORECASE):
                found.append(f"{path}:{number}: {match[0]!r}, better: {better}")
    return found


def test_the_usual_terms_are_used() -> None:
    found = [
        message
        for path, lines in texts()
        for message in private_terms(path.relative_to(ROOT), lines)
    ]
    assert not found, "\n".join(found)


def test_private_terms_are_found() -> None:
    lines = ["max_pictures: 4", "The picture goes on.", "feature maps", "all maps of the trunk"]
    assert private_terms(Path("a.md"), lines) == [
        "a.md:2: 'picture', better: image",
        "a.md:2: 'goes on', better: continue, resume, again",
        "a.md:4: 'trunk', better: backbone",
        "a.md:4: 'all maps', better: feature maps",
    ]


def test_all_parts_of_the_repository_are_read() -> None:
    folders = [path.relative_to(ROOT).parts[0] for path, _ in texts()]
    assert {"src", "docs", "configs", "notebooks", "README.md", "CHANGELOG.md"} == set(folders)
