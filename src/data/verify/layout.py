"""Layouts that a data module reads: options of the command, and a loop over the splits."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from src.data.verify.report import Report
from src.errors import UserError


@dataclass(frozen=True)
class DataModuleLayout(ABC):
    """A layout of ``python -m src verify`` that a data module reads.

    Attributes:
        TREE: The files, for the help text.
        data_module: Name of the data module.
        root: Default folder.
        options: Further arguments of the data module that are options of the command, with those of
            ``argparse``.
        fixed: Further arguments of the data module.
    """

    TREE: str
    data_module: str
    root: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        add = parser.add_argument
        add("--root", default=self.root, help="data folder (%(default)s)")
        splits = ["train", "val"]
        add("--splits", nargs="+", default=splits, choices=splits, help="default: both")
        for name, settings in self.options.items():
            add(f"--{name.replace('_', '-')}", **settings)

    def run(self, args: argparse.Namespace) -> Report:
        """Check every split.

        Args:
            args: What `add_arguments` declares, ``workers`` and ``max_pixels``.
        """
        from src import data  # imported here, because data modules import Lightning, which is slow

        given = {name: getattr(args, name) for name in self.options}
        options = {name: value for name, value in given.items() if value is not None}
        module = getattr(data, self.data_module)(
            root=args.root, max_pixels=args.max_pixels, **self.fixed, **options
        )
        report = Report()
        for split in args.splits:
            try:
                self.check_split(report, module, split, args)
            except UserError as error:
                report.problems.append(str(error))
        return report

    @abstractmethod
    def check_split(
        self, report: Report, module: Any, split: str, args: argparse.Namespace
    ) -> None:
        """Check a split, and add what is found to a report.

        Raises:
            UserError: If the data module cannot read the list of files or the annotations.
        """
