"""``EXPORT.md``: what the descriptions of all exported files have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.export.description import Description
from src.files import readable_size
from src.project import origin


def card(description: Description, files: Sequence[Path], content: str, preprocessing: str) -> str:
    """Text of ``EXPORT.md``.

    Args:
        description: Task, classes and preprocessing.
        files: The files.
        content: Inputs and outputs, and how to run the files.
        preprocessing: How images are prepared; the settings follow it.
    """
    listed = "\n".join(f"- `{path.name}` ({readable_size(path.stat().st_size)})" for path in files)
    settings = "\n".join(f"- {name}: {value}" for name, value in description.settings.items())
    names = "\n".join(f"{number} {name}" for number, name in enumerate(description.class_names))
    return f"""# InternImage for {description.task}, exported

Written by `python -m src export` of {origin()}.

{listed}

{content}

## Preprocessing

{preprocessing}

{settings}

## Classes

```
{names}
```
"""
