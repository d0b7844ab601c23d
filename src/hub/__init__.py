"""Models with their class names: read, predict, save, share on the Hugging Face hub."""

from src.hub.parts import TASKS, preprocessing_of, task_of
from src.hub.pretrained import Pretrained
from src.hub.runs import load_checkpoint

__all__ = ["TASKS", "Pretrained", "load_checkpoint", "preprocessing_of", "task_of"]
