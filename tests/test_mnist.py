"""Loading MNIST: the sample, the files on disk, and downloads, each with what can go wrong.

Four tiny IDX files stand in for the real ones, with the table of MD5s to match, so that every path, including the
download, runs without a network and without the data set.
"""

import gzip
import hashlib
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.datasets import MNIST

from s5.training import mnist

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.FILES


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    """Hide the machine's data folder, proxy and network from every test."""
    monkeypatch.setattr(mnist, "DATA_FOLDER", tmp_path / "data")
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
    digests = tuple(hashlib.md5(content).hexdigest() for content in files.values())
    for name, md5 in (("mnist", digests), ("fashion", ())):
        monkeypatch.setitem(mnist.DATA_SETS, name, replace(mnist.DATA_SETS[name], md5=md5))
    return files


@pytest.fixture
def mirror(monkeypatch, tiny):
    """The files that can be downloaded."""
    files = dict(tiny)

    def fetch(url, download_root, filename, md5):
        name = filename.removesuffix(".gz")
        if name not in files:
            raise RuntimeError("File not found or corrupted.")
        Path(download_root, name).write_bytes(files[name])

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    return files


def _idx_header(*shape: int) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


def _write(folder: Path, files: dict[str, bytes | None]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


def _labelled(images: torch.Tensor, labels: torch.Tensor) -> set[tuple[bytes, int]]:
    return set(zip(map(bytes, images.numpy()), labels.tolist(), strict=True))


# --- The sample and the validation split ------------------------------------------------------------------------------


def test_validation_split_holds_out_a_sixth_of_the_training_images(sample):
    split = mnist.validation_split(sample)
    assert (split.source, split.split) == ("sample", "validation")
    train = _labelled(split.train_images, split.train_labels)
    held_out = _labelled(split.eval_images, split.eval_labels)
    assert (len(train), len(held_out)) == (4000 - 666, 666)
    assert train | held_out == _labelled(sample.train_images, sample.train_labels)
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
    assert (again.train_labels.bincount().tolist(), again.eval_labels.bincount().tolist()) == ([400] * 10, [100] * 10)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_are_no_images_and_labels_is_refused(sample):
    images, labels = sample.eval_images, sample.eval_labels
    for wrong, message in (
        ((images / 255, labels), "eval_images must be .* not torch.float32"),
        ((images[:, None], labels), "eval_images must be"),
        ((images.numpy(), labels), "eval_images must be .* not ndarray"),
        ((images, labels.float()), "eval_labels must be a tensor, int64"),
        ((images[:-1], labels), r"one for each of the 999 eval_images, .* not torch.int64 \(1000,\)"),
        ((images[:0], labels[:0]), "eval_labels must be .* at least 1"),
        ((images, labels + 1), "eval_labels must be from 0 to 9, not from 1 to 10"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(sample, eval_images=wrong[0], eval_labels=wrong[1])


# --- Files on disk ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["mnist", "fashion"])
def test_files_become_tensors(name, tiny, tmp_path, capsys):
    known = mnist.DATA_SETS[name]
    _write(tmp_path / "data" / known.folder / "raw", tiny)
    data = mnist.load_data(name)
    assert str(data) == f"{known.title}: 12 training and 4 test images"
    assert (data.source, data.classes) == (name, known.classes)
    assert data.train_images[1, 2].tolist() == list(tiny[TRAIN_IMAGES][16 + 784 + 56 : 16 + 784 + 84])
    assert data.train_labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.eval_labels.tolist() == [0, 1, 2, 3]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("folder", "form"),
    [
        ("MNIST/raw", "{dashed}.gz"),
        ("MNIST/raw", "{dotted}"),
        ("MNIST", "{dashed}/{dashed}"),
        ("MNIST/MNIST/raw", "{dashed}"),
        ("raw", "{dotted}/{dotted}"),
        (".", "{dashed}"),
        (".", "{dotted}.gz"),
    ],
)
def test_files_are_found_in_the_forms_in_which_they_circulate(folder, form, tiny, tmp_path, monkeypatch):
    for name, content in tiny.items():
        file = tmp_path / folder / form.format(dashed=name, dotted=name.replace("-idx", ".idx"))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(content) if form.endswith(".gz") else content)
    monkeypatch.setenv("MNIST_ROOT", str(tmp_path))
    for data in ("mnist", tmp_path / folder):
        assert mnist.load_data(data).source == "mnist"
    assert mnist.find_files("kmnist") is None  # although its files have these names, too


def test_the_environment_is_preferred_to_the_projects_folder(tiny, tmp_path, monkeypatch):
    """Both folders have a damaged file: the error names the one that was read."""
    damaged = r"\A.*{}/MNIST/raw/t10k-labels-idx1-ubyte is damaged: .* Delete it and run again.*\Z"
    for root in ("environment", "data"):
        _write(tmp_path / root / "MNIST/raw", tiny | {TEST_LABELS: tiny[TEST_LABELS][:-1] + b"9"})
    with pytest.raises(mnist.DataError, match=damaged.format("data")):
        mnist.load_data()
    monkeypatch.setenv("MNIST_ROOT", str(tmp_path / "environment"))
    with pytest.raises(mnist.DataError, match=damaged.format("environment")):
        mnist.load_data()


def test_data_of_the_users_are_named_by_their_folder_and_content(tiny, tmp_path):
    sources = []
    for content in (bytes(12), bytes(11) + b"\x01"):
        _write(tmp_path / "letters", tiny | {TRAIN_LABELS: _idx_header(12) + content})
        sources.append(mnist.load_data(tmp_path / "letters").source)
    assert all(re.fullmatch(r"letters@[0-9a-f]{8}", source) for source in sources)
    assert sources[0] != sources[1]


def test_a_folder_that_holds_something_else_is_refused_in_a_line(tiny, tmp_path):
    cases = (
        (
            {TRAIN_IMAGES: _idx_header(12, 32, 32) + bytes(12 * 1024)},
            r"grey images of 28×28 .* not torch.uint8 \(12, 32",
        ),
        ({TRAIN_IMAGES: _idx_header(12, 28, 28, 3) + bytes(12 * 2352)}, r"grey images of 28×28 .* \(12, 28, 28, 3\)"),
        ({TRAIN_LABELS: _idx_header(12) + bytes(range(12))}, "at most ten classes: .* from 0 to 9, not from 0 to 11"),
        ({TRAIN_LABELS: tiny[TRAIN_LABELS][:-1]}, "train-labels-idx1-ubyte is damaged, or no file of bytes in the IDX"),
        ({TRAIN_LABELS: b"PNG"}, "train-labels-idx1-ubyte is damaged, or no file of bytes in the IDX format"),
        ({f"{TRAIN_LABELS}.gz": gzip.compress(b"cut off")[:-9], TRAIN_LABELS: None}, "train-labels.* is damaged: "),
        ({TRAIN_LABELS: None}, "must hold the four files train-images-idx3-ubyte, .*, each as it is or as .gz"),
    )
    for number, (changes, message) in enumerate(cases):
        folder = _write(tmp_path / str(number), tiny | changes)
        with pytest.raises(mnist.DataError, match=rf"\A.*{message}.*\Z"):
            mnist.load_data(folder)
    with pytest.raises(
        ValueError, match="no data set or folder 'fasion': write mnist, fashion, kmnist, sample, or a fol"
    ):
        mnist.load_data("fasion")


# --- Downloads: without a network the sample or an error; if the disk fails an error ----------------------------------


def test_without_a_network_the_sample_is_used_with_a_warning_or_there_is_an_error(tmp_path, capsys):
    assert str(mnist.load_data()).startswith("MNIST SAMPLE (not the full data set): 4,000 training")
    err = capsys.readouterr().err
    for text in ("SAMPLE", "NO MNIST RESULTS", "refused", *mnist.FILES, str(tmp_path / "data/MNIST/raw")):
        assert text in err
    with pytest.raises(mnist.DataError, match=r"(?s)MNIST could not be downloaded.*data/MNIST/raw\Z"):
        mnist.load_data(allow_sample=False)
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "data" / "MNIST").exists()


def test_a_server_that_does_not_respond_times_out(tiny, monkeypatch):
    """It accepts the connection and sends nothing: torchvision alone would wait forever."""
    monkeypatch.setattr(mnist, "NETWORK_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        with pytest.raises(mnist.DataError, match="timed out"):
            mnist.load_data(allow_sample=False)
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("name", mnist.DATA_SETS)
def test_missing_files_are_downloaded_once_and_an_aborted_download_is_repeated(name, tiny, mirror, tmp_path, capsys):
    known = mnist.DATA_SETS[name]
    raw = tmp_path / "data" / known.folder / "raw"
    _write(raw, {name: content for name, content in tiny.items() if name != TEST_LABELS})
    del mirror[TEST_LABELS]
    with pytest.raises(mnist.DataError, match="File not found or corrupted"):
        mnist.load_data(name, allow_sample=False)
    mirror |= tiny
    for printed in (f"Downloading {known.title} into {raw}\n" * 2, ""):
        assert mnist.load_data(name).eval_labels.tolist() == [0, 1, 2, 3]
        assert capsys.readouterr() == (printed, "")


def test_a_disk_that_fails_is_reported(tiny, mirror, tmp_path, monkeypatch):
    """The system refuses to write more than 5,000 bytes into a file, as a full disk would."""
    resource = pytest.importorskip("resource", reason="requires the file size limit of Unix")
    (tmp_path / "file").write_text("not a folder")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        for root in (tmp_path, tmp_path / "file"):
            monkeypatch.setenv("MNIST_ROOT", str(root))
            with pytest.raises(mnist.DataError, match=rf"\AMNIST cannot be stored in {root}.*MNIST_ROOT.*\Z"):
                mnist.load_data()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
