"""Where and by what a result is produced: device, library versions, git commit."""

import os
import platform
import subprocess
from functools import cache

import torch

from s5.training.command_line import plural
from s5.training.files import ROOT

SOURCES = ("*.py", "*.cpp", "*.c", "*.h")
COMMIT = "MNIST_S5_COMMIT"  # environment variable with the commit, for workers without a checkout


def provenance(device: torch.device, precision: str, threads: int | None = None) -> dict:
    """The fields `device`, `precision`, `versions` and `commit` of a result; `threads` None: as torch is set."""
    where = f"{platform.machine()}, {plural(threads or torch.get_num_threads(), 'thread')}"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return {
        "device": f"{device.type}: {where}",
        "precision": precision,
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "commit": current_commit(),
    }


@cache  # the running code does not change with a later commit
def current_commit() -> str:
    """The git commit of the running code, with "-dirty" if a source file differs from it; "unknown" outside git."""
    if COMMIT in os.environ:
        return os.environ[COMMIT]
    if not (commit := git("rev-parse", "--short=12", "HEAD")):
        return "unknown"
    return commit + ("-dirty" if git("status", "--porcelain", *SOURCES) else "")


def git(*arguments: str) -> str:
    """What a git command prints in this checkout; empty if it fails."""
    try:
        return subprocess.check_output(["git", "-C", ROOT, *arguments], stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
