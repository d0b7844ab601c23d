"""thin"""
from __future__ import annotations
import sys
from lightning.pytorch.cli import LightningCLI, LightningArgumentParser
from src.data import BaseDataModule, ImageNetDataModule  # noqa: F401
from src.tasks import BaseTask, ClassificationTask  # noqa: F401
from src.models import InternImage  # noqa: F401


class CLI(LightningCLI):
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments(
            "data.num_classes", "model.init_args.num_classes", apply_on="instantiate"
        )

    def _parse_ckpt_path(self) -> None:
        pass


def main(args: list[str] | None = None) -> int:
    CLI(
        BaseTask, BaseDataModule, subclass_mode_model=True, subclass_mode_data=True, args=args,
        seed_everything_default=0, auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
    )
    return 0
