"""Lightning callbacks: checkpoints, EMA, reproducible epochs, run folder, predictions."""

from src.callbacks.cached_features import CachedFeatures
from src.callbacks.checkpoint import AtomicCheckpointIO, Checkpoint
from src.callbacks.class_table import ClassTable
from src.callbacks.classification_writer import ClassPredictionWriter
from src.callbacks.data_waiting import DataWaiting
from src.callbacks.detection_writer import DetectionWriter
from src.callbacks.early_stopping import TaskEarlyStopping
from src.callbacks.ema import EMA
from src.callbacks.epoch_seed import EpochSeed
from src.callbacks.final_validation import FinalValidation
from src.callbacks.graceful_stop import GracefulStop
from src.callbacks.logged_images import LoggedImages
from src.callbacks.monitors import MonitorCheck
from src.callbacks.panoptic_writer import PanopticWriter
from src.callbacks.run_folder import RunFolder
from src.callbacks.segmentation_writer import LabelMapWriter
from src.callbacks.step_boundary import StepBoundary
from src.callbacks.summary import NetworkSummary
from src.callbacks.terminate_on_nan import TerminateOnNaN
from src.callbacks.throughput import Throughput
from src.callbacks.time_estimate import TimeEstimate
from src.callbacks.unreadable import UnreadableImages

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "CachedFeatures",
    "Checkpoint",
    "ClassPredictionWriter",
    "ClassTable",
    "DataWaiting",
    "DetectionWriter",
    "EpochSeed",
    "FinalValidation",
    "GracefulStop",
    "LabelMapWriter",
    "LoggedImages",
    "MonitorCheck",
    "NetworkSummary",
    "PanopticWriter",
    "RunFolder",
    "StepBoundary",
    "TaskEarlyStopping",
    "TerminateOnNaN",
    "Throughput",
    "TimeEstimate",
    "UnreadableImages",
]
