"""Parameter groups and learning-rate schedules shared by all tasks."""

from src.optim.param_groups import lr_scale_by_depth, parameter_groups
from src.optim.poly import WarmupPoly
from src.optim.schedules import StepSchedule, WarmupCosine
from src.optim.steps import WarmupMultiStep

__all__ = [
    "StepSchedule",
    "WarmupCosine",
    "WarmupMultiStep",
    "WarmupPoly",
    "lr_scale_by_depth",
    "parameter_groups",
]
