"""Clear messages and a clean shutdown when another rank or a data loader worker dies."""

from __future__ import annotations

import os
import re
import sys
import threading
import time

from src.stopping import is_launched_rank

LOST = (
    "Another rank of this run has stopped or cannot be reached, so this one stops too; see the"
    " output of the other rank for the cause. To resume, run the same command with --ckpt_path last"
)
_DEAD_WORKER = (
    "A data loader worker has died, most likely because the machine ran out of memory. Lower"
    " data.num_workers or data.batch_size. To resume, run the same command with --ckpt_path last"
)
_ENDED_WORKER = (
    "A data loader worker was killed or has crashed ({how}). To resume, run the same command with"
    " --ckpt_path last. With data.num_workers=0, images are loaded in the main process, which shows"
    " where it crashes."
)
_NO_SHARED_MEMORY = (
    "The shared memory (/dev/shm), which data loader workers use to pass batches, is full. Increase"
    " it (docker run --shm-size 8g, or --ipc host), or lower data.num_workers or data.batch_size."
    " To resume, run the same command with --ckpt_path last"
)
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) "
    r"(?:is killed by signal: (?P<signal>[^.]+)"
    r"|exited unexpectedly(?: with exit code (?P<code>\d+))?)"
)
_SHARED_MEMORY = re.compile(
    r"(?:unable to \w+|could not|cannot) .*(?:</torch_|shared memory|shm)"
    r"|out of shared memory|insufficient shared memory",
    re.IGNORECASE | re.DOTALL,
)
_LOST_CONNECTION = re.compile(
    r"Connection (?:was )?(?:closed|reset|refused)|Broken pipe|gloo.*(?:closed|timed? ?out)"
    r"|NCCL.*(?:abort|closed|timed? ?out|remote)|Read error \[|recvValue failed|TCPStore",
    re.IGNORECASE | re.DOTALL,
)


def explanation(error: BaseException) -> str | None:
    """Message for an error caused by another rank or worker; ``None`` for other errors."""
    worker = _about_worker(error)
    if worker is not None:
        return worker
    return LOST if _is_about_lost_process(error) else None


def _about_worker(error: BaseException) -> str | None:
    if _SHARED_MEMORY.search(str(error)):
        return _NO_SHARED_MEMORY
    found = _WORKER.search(str(error))
    if found is None:
        return None
    # For "exited unexpectedly", the cause of the error contains the signal.
    if error.__cause__ is not None and (reason := _about_worker(error.__cause__)) is not None:
        return reason
    name, code = found["signal"], found["code"]
    if (name is None and code is None) or name == "Killed":
        return _DEAD_WORKER
    if name == "Bus error":
        return _NO_SHARED_MEMORY
    return _ENDED_WORKER.format(how=f"signal: {name}" if name else f"exit code {code}")


def _is_about_lost_process(error: BaseException) -> bool:
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return False
    is_alone = distributed.get_world_size() == 1
    return not is_alone and _LOST_CONNECTION.search(str(error)) is not None


def stop_with_parent(seconds: float = 2.0) -> None:
    """Exit when this rank was launched by Lightning and rank 0 has died.

    On a GPU, the rank would otherwise wait in a collective operation until the NCCL timeout.
    torchrun and SLURM monitor their processes themselves, and Lightning does so as long as rank 0
    is running.

    Args:
        seconds: Polling interval.
    """
    if not is_launched_rank():
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        print(f"error: {LOST}", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
