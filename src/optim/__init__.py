"""Parameter groups and learning-rate schedules shared by all tasks."""

from src.optim.param_groups import lr_scale_by_depth, parameter_groups
from src.optim.schedules import StepSchedule, WarmupCosine

__all__ = ["StepSchedule", "WarmupCosine", "lr_scale_by_depth", "parameter_groups"]
