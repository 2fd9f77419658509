"""Where the project's files are, and how one is written: whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

ROOT = Path(__file__).parent.parent.parent
README, RESULTS_PAGE = ROOT / "README.md", ROOT / "RESULTS.md"
RESULTS, RUNS = ROOT / "results", ROOT / "runs"
LEDGER = RESULTS / "ledger.jsonl"  # one line per trial
USER_LEDGER = RUNS / "ledger.jsonl"  # the same, of what users train
SPEED, EXPORT = RESULTS / "speed.json", RESULTS / "export.json"  # timings; exported networks
PEERS = RESULTS / "peers.csv"  # what other repositories state of themselves
TRAINED = RESULTS / "weights"  # a file per claimed network, of its first seed, not the best
TEACHERS = RUNS / "teachers"  # networks trained for distillation
PLACES = "--output, --ledger or --figure, see --help"  # the options that name what a command writes


def check_folder(path: str | Path) -> None:
    """Make the folder if it is missing. Raises OSError, in one line, if nothing can be written there.

    A course's checkout may be read-only: then every command needs another place for what it writes.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise OSError(f"cannot write into {path}: {error.strerror}. Choose another place: {PLACES}") from error


@contextmanager
def hold_folder(path: str | Path) -> Iterator[None]:
    """Hold an existing folder, so that no other process writes its results there as well.

    Raises OSError if another process does. The system releases the lock of a process that is killed; the lock's file
    is removed at the end.
    """
    lock = Path(path) / ".lock"
    try:
        held = FileLock(lock, timeout=0).acquire()
    except Timeout:
        raise OSError(f"{path} is in use by another process: wait until it ends, or choose another folder") from None
    with held:
        try:
            yield
        finally:
            with suppress(OSError):  # before the lock is released: afterwards it may be another's
                lock.unlink()


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; text as UTF-8. Raises OSError as the file system does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode())


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any failure it is removed.

    The temporary name keeps the suffix, since several libraries choose the format by it. What a killed process leaves
    of it is overwritten the next time. Missing parent folders are made. Raises OSError as the file system does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # else a power cut may keep the new name and lose the content
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
