"""Where the project's files are, and how one is written: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
README, RESULTS_PAGE = ROOT / "README.md", ROOT / "RESULTS.md"
FIGURES, RESULTS, RUNS = ROOT / "figures", ROOT / "results", ROOT / "runs"
LEDGER = RESULTS / "ledger.jsonl"  # one line per trial
OWN_LEDGER = RUNS / "ledger.jsonl"  # the same, of networks of one's own
SPEED, EXPORT = RESULTS / "speed.json", RESULTS / "export.json"  # timings; exported networks
PEERS = RESULTS / "peers.csv"  # what other repositories state of themselves
WEIGHTS = RESULTS / "s5_seed0.safetensors"  # of `Net` from the first seed, not the best
TEACHERS = RUNS / "teachers"  # networks trained for distillation


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it is removed.

    The temporary name keeps the suffix, since several libraries choose the format by it.
    Missing parent folders are made. Raises OSError as the file system does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut may keep the new name and lose the content
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
