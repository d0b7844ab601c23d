"""Table of modules and parameter counts, printed before training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from rich import get_console
from rich.table import Table


class NetworkSummary(ModelSummary):
    """Print a table of the modules that have parameters.

    Lightning's table also lists losses and metrics, and FLOPs, which it cannot count for custom
    operators; use ``python -m src profile`` instead.

    Args:
        max_depth: Levels of modules below the task; -1 shows all, 0 none.
    """

    def __init__(self, max_depth: int = 2) -> None:
        super().__init__(max_depth)

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **__: Any,
    ) -> None:
        """Print the table and the number of trainable and frozen parameters."""
        columns = dict(summary_data)
        table = Table(header_style="bold")
        for name, justify in (("Module", "left"), ("Class", "left"), ("Parameters", "right")):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        rows = zip(columns["Name"], columns["Type"], columns["Params"], strict=True)
        for name, kind, count in rows:
            if count.strip() not in ("0", "--"):
                table.add_row(name, kind, count)
        get_console().print(table)
        frozen = int(total_parameters) - int(trainable_parameters)
        text = f"{get_human_readable_count(int(trainable_parameters)).strip()} trainable parameters"
        rest = f", {get_human_readable_count(frozen).strip()} frozen" if frozen else ""
        get_console().print(f"{text}{rest}")
