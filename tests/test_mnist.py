"""Loading MNIST: the sample, the files on disk, and downloads, each with what can go wrong.

Most tests use four tiny IDX files in place of the real ones, with the table of MD5s to match, so that every path,
including the download, runs without a network and without the data set.
"""

import gzip
import hashlib
import os
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from torchvision.datasets import MNIST

from s5.training import mnist

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.FILES

REAL_ROOT = Path(os.environ.get("MNIST_ROOT") or "data").absolute()


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


@pytest.fixture
def tiny(monkeypatch):
    """{name: content} of a tiny MNIST, which mnist.py and torchvision now expect in place of the real one."""
    generator = torch.Generator().manual_seed(1)
    files = {}
    for images, labels, count in [(TRAIN_IMAGES, TRAIN_LABELS, 12), (TEST_IMAGES, TEST_LABELS, 4)]:
        pixels = torch.randint(256, (count * 784,), generator=generator).tolist()
        files[images] = _idx_header(count, 28, 28) + bytes(pixels)
        files[labels] = _idx_header(count) + bytes(index % 10 for index in range(count))
    monkeypatch.setattr(mnist, "FILES", {name: _md5(content) for name, content in files.items()})
    monkeypatch.setattr(MNIST, "resources", [(f"{name}.gz", _md5(_archive(files[name]))) for name in files])
    return files


@pytest.fixture
def mirror(monkeypatch, tiny):
    """A local server of the tiny files, which stops in the middle of the files named in `mirror.cut`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = Path(self.path).stem
            body = _archive(tiny[name])
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if name in server.cut else body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.cut = set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _idx_header(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


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


def _labelled(images: torch.Tensor, labels: torch.Tensor) -> set[tuple[bytes, int]]:
    return set(zip(map(bytes, images.numpy()), labels.tolist(), strict=True))


# --- The sample and the validation split ------------------------------------------------------------------------------


def test_sample_is_stratified_and_shuffled(sample):
    assert (sample.source, sample.split) == ("sample", "test")
    for images, labels, of_each in [
        (sample.train_images, sample.train_labels, 400),
        (sample.eval_images, sample.eval_labels, 100),
    ]:
        assert (images.shape, images.dtype, labels.dtype) == ((10 * of_each, 28, 28), torch.uint8, torch.int64)
        assert (images.min(), images.max()) == (0, 255)
        assert labels.bincount().tolist() == [of_each] * 10
        assert len(labels[:100].unique()) == 10


def test_validation_split_holds_out_a_sixth_of_the_training_images(sample):
    split = mnist.validation_split(sample)
    assert (split.source, split.split) == ("sample", "validation")
    train = _labelled(split.train_images, split.train_labels)
    held_out = _labelled(split.eval_images, split.eval_labels)
    assert (len(train), len(held_out)) == (4000 - 666, 666)
    assert train | held_out == _labelled(sample.train_images, sample.train_labels)
    assert held_out.isdisjoint(_labelled(sample.eval_images, sample.eval_labels))
    with pytest.raises(ValueError, match="already"):
        mnist.validation_split(split)


def test_splits_are_those_of_every_recorded_result(sample):
    """Results recorded with different releases of torch are comparable only if these stay the same."""
    state = torch.get_rng_state()
    index, images = torch.arange(60_000), torch.zeros(60_000, 28, 28, dtype=torch.uint8)
    images[:, 0, 0], images[:, 0, 1] = index % 256, index // 256
    held_out = mnist.validation_split(replace(sample, train_images=images, train_labels=index % 10)).eval_images
    assert len(held_out) == 10_000
    first = held_out[:6, 0, 0].long() + 256 * held_out[:6, 0, 1].long()
    assert first.tolist() == [7616, 26769, 14611, 3049, 6543, 8993]
    again = mnist.load_sample()
    assert again.train_labels[:6].tolist() == [2, 3, 9, 5, 5, 0]
    assert again.eval_labels[:6].tolist() == [0, 8, 9, 0, 7, 4]
    assert torch.equal(torch.get_rng_state(), state)


# --- MnistData --------------------------------------------------------------------------------------------------------

NOT_IMAGES = {
    "floats": lambda images, labels: (images / 255, labels),
    "a channel": lambda images, labels: (images[:, None], labels),
    "an array": lambda images, labels: (images.numpy(), labels),
    "no images": lambda images, labels: (images[:0], labels[:0]),
    "more labels": lambda images, labels: (images[:-1], labels),
    "labels of another type": lambda images, labels: (images, labels.float()),
    "label 10": lambda images, labels: (images, labels + (labels == 9)),
}


@pytest.mark.parametrize("change", NOT_IMAGES.values(), ids=NOT_IMAGES)
def test_what_are_no_images_and_labels_is_refused(sample, change):
    images, labels = change(sample.eval_images, sample.eval_labels)
    with pytest.raises(ValueError, match=r"\A[^\n]*eval_(images|labels)[^\n]*\Z"):
        replace(sample, eval_images=images, eval_labels=labels)


def test_data_as_text(sample):
    mine = replace(sample.subset(600, 200), source="mnist")
    assert str(mine) == "MNIST: 600 training and 200 test images"
    assert str(mnist.validation_split(mine)) == "MNIST: 500 training and 100 validation images"
    assert str(sample) == "MNIST SAMPLE (not the full data set): 4,000 training and 1,000 test images"


# --- Files on disk ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_files_become_tensors(tiny, tmp_path, capsys):
    _write(tmp_path, tiny)
    data = mnist.load_mnist(tmp_path)
    assert (data.train_images.shape, data.eval_images.shape) == ((12, 28, 28), (4, 28, 28))
    assert data.train_images[1, 2].tolist() == list(tiny[TRAIN_IMAGES][16 + 784 + 56 : 16 + 784 + 84])
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.eval_labels.tolist() == [0, 1, 2, 3]
    assert (data.source, data.split) == ("mnist", "test")
    assert capsys.readouterr() == ("", "")


def test_a_damaged_file_is_reported(tiny, tmp_path):
    for number, content in enumerate((tiny[TEST_LABELS][:-1], tiny[TEST_LABELS][:-1] + b"x")):
        raw = _write(tmp_path / str(number), tiny | {TEST_LABELS: content})
        with pytest.raises(mnist.DataError, match=r"\A.* is damaged: .* Delete it and run again.*\Z") as error:
            mnist.load_mnist(tmp_path / str(number))
        assert str(raw / TEST_LABELS) in str(error.value)


@pytest.mark.skipif(not (REAL_ROOT / "MNIST/raw" / TRAIN_IMAGES).exists(), reason="requires the full MNIST")
def test_the_full_mnist_loads_and_the_sample_is_a_part_of_it(sample):
    data = mnist.load_mnist(REAL_ROOT, allow_sample=False)
    assert str(data) == "MNIST: 60,000 training and 10,000 test images"
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.eval_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    known = _labelled(data.train_images, data.train_labels)
    assert _labelled(sample.train_images, sample.train_labels) < known
    assert _labelled(sample.eval_images, sample.eval_labels) < known


def test_root_is_preferred_to_the_environment_and_that_to_data(tiny, tmp_path, monkeypatch):
    """Each of the three folders has a damaged file: the error names the one that was read."""
    for root in ("argument", "environment", "data"):
        _write(tmp_path / root, tiny | {TEST_LABELS: b"half"})
    with pytest.raises(mnist.DataError, match="data/MNIST/raw"):
        mnist.load_mnist()
    monkeypatch.setenv("MNIST_ROOT", str(tmp_path / "environment"))
    with pytest.raises(mnist.DataError, match="environment/MNIST/raw"):
        mnist.load_mnist()
    with pytest.raises(mnist.DataError, match="argument/MNIST/raw"):
        mnist.load_mnist("argument")


# --- No network -------------------------------------------------------------------------------------------------------


def test_without_a_network_the_sample_is_used_with_a_warning(tmp_path, capsys):
    assert str(mnist.load_mnist()).startswith("MNIST SAMPLE (not the full data set): 4,000 training")
    err = capsys.readouterr().err
    assert len(err.splitlines()) > 5
    for text in ("SAMPLE", "NO MNIST RESULTS", "refused", "MNIST_ROOT", str(tmp_path / "data/MNIST/raw")):
        assert text in err


def test_without_a_network_and_without_the_sample_an_error_is_raised(capsys):
    with pytest.raises(mnist.DataError, match=r"(?s)could not be downloaded.*MNIST_ROOT.*elsewhere/MNIST/raw\Z"):
        mnist.load_mnist("elsewhere", allow_sample=False)
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


def test_missing_files_are_downloaded_once(tiny, mirror, tmp_path, capsys):
    raw = _write(tmp_path / "data", {name: content for name, content in tiny.items() if name != TRAIN_LABELS})
    downloaded = mnist.load_mnist()
    assert {name: (raw / name).read_bytes() for name in tiny} == tiny
    assert capsys.readouterr() == (f"Downloading MNIST (11 MB) into {raw}\n", "")
    assert torch.equal(mnist.load_mnist().train_images, downloaded.train_images)
    assert capsys.readouterr() == ("", "")


def test_an_aborted_download_can_be_repeated(tiny, mirror, tmp_path):
    mirror.cut = {TEST_LABELS}
    with pytest.raises(mnist.DataError, match="could not be downloaded"):
        mnist.load_mnist(tmp_path, allow_sample=False)
    mirror.cut = set()
    assert mnist.load_mnist(tmp_path, allow_sample=False).source == "mnist"


# --- Disk failures: an error, never the sample ------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(mnist.DataError, match=r"\AMNIST cannot be stored in .*MNIST_ROOT.*\Z") as error:
        mnist.load_mnist(tmp_path / "file")
    assert str(tmp_path / "file") in str(error.value)


def test_a_disk_that_fails_during_the_download_is_reported(tiny, mirror, tmp_path):
    """The system refuses to write more than 5,000 bytes into a file, as a full disk would."""
    resource = pytest.importorskip("resource", reason="requires the file size limit of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(mnist.DataError, match="cannot be stored in"):
            mnist.load_mnist(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert mnist.load_mnist(tmp_path).source == "mnist"
