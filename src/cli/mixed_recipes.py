"""Note about recipes of different tasks in one command, of which the later one wins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def note_of_tasks(args: Sequence[str]) -> str | None:
    """Note if two ``--config`` files set different tasks, else ``None``.

    Args:
        args: Arguments of a command, whose files are valid YAML.
    """
    import yaml  # late, because the environment may be empty

    tasks: list[tuple[str, str]] = []
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        name, separator, value = arg.partition("=")
        path = Path(value if separator else following)
        if name not in ("--config", "-c") or not path.is_file():
            continue
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError:
            continue  # reported by the parser of the settings
        model = settings.get("model") if isinstance(settings, dict) else None
        task = model.get("class_path") if isinstance(model, dict) else None
        if isinstance(task, str):
            tasks.append((str(path), task.rpartition(".")[2]))
    if len({task for _, task in tasks}) < 2:
        return None
    listed = ", ".join(f"{path} ({task})" for path, task in tasks)
    return f"The recipes are of different tasks, of which the last one is used: {listed}."
