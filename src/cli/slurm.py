"""Requeue a job of SLURM after its signal, and resume it when SLURM starts it again.

Before the time limit, SLURM can send SIGUSR1 to all ranks (``#SBATCH --signal=USR1@300``). The run
then stops as after SIGTERM (``src.callbacks.graceful_stop``), with a checkpoint of all ranks at the
same step, and rank 0 requeues the job. Lightning's own requeueing, which this replaces, saves
inside of the signal handler, in the middle of a step.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from src.environment import SLURM_JOB
from src.errors import UserError
from src.runs import ENVIRONMENT, age, checkpoints


def requeue() -> str:
    """Requeue the job of this process.

    Returns:
        Message for the user.
    """
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None)
        lines = said.strip().splitlines() if isinstance(said, str) else []
        reason = [*lines, str(error)][0]
        return (
            f"Interrupted. `{' '.join(command)}` failed: {reason}. Submit the job again with"
            " --ckpt_path last."
        )
    return f"Interrupted. SLURM job {job} is requeued and resumes from the last checkpoint."


def checkpoint_of_requeued_job(runs: Path) -> Path | None:
    """The last checkpoint of a job that SLURM has started again.

    Args:
        runs: Folder with the ``version_*`` folders of one run name.

    Returns:
        A checkpoint, or ``None`` if the job was not started before or has saved nothing.

    Raises:
        UserError: If the number of restarts is not a number.
    """
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    if not restarts.isdecimal():
        raise UserError(f"SLURM_RESTART_COUNT must be a number, got {restarts!r}.")
    if int(restarts) == 0:
        return None
    found = [path for path in checkpoints("last", runs) if _is_of_job(path)]
    return max(found, key=age, default=None)


def _is_of_job(checkpoint: Path) -> bool:
    path = checkpoint.parents[1] / ENVIRONMENT
    job = os.environ.get("SLURM_JOB_ID", "")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(line.split() == [SLURM_JOB, job] for line in lines)
