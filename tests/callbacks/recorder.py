"""Loggers for tests, named in recipes as ``tests.callbacks.recorder.Recorder``."""

from typing import ClassVar

from lightning.pytorch.loggers import Logger


class Recorder(Logger):
    """Logger that stores the metrics in the class."""

    seen: ClassVar[dict[str, float]] = {}
    name, version = "recorder", 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.seen.update(metrics)

    def log_hyperparams(self, *_: object, **__: object) -> None: ...


class Refusing(Recorder):
    """Logger that cannot be created."""

    def __init__(self) -> None:
        raise ValueError("The tracking server does not exist.")
