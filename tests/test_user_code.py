"""Networks from files and from code that is only in memory."""

import math
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import nn

from s5.networks.user_code import NetworkError, check_network, from_file, from_object
from tests.utils import ROOT

CODE = """from torch import nn

class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, images):
        return self.layers(images)
"""


def small_network(width: int = 10):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, 10))


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes) -> str:
        (tmp_path / "mine.py").write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"{tmp_path}/mine.py:MyNet"

    return write


@pytest.fixture
def shell():
    return InteractiveShell()


def run_elsewhere(source, tmp_path) -> str:
    """Build the network in a new process, which has only the project; return what it prints."""
    (tmp_path / "source.pkl").write_bytes(pickle.dumps(source))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'source.pkl')!r}, 'rb')).build())"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_a_class_of_a_file_is_named_by_its_text(file):
    source = from_file(file(CODE))
    assert source.text.startswith(CODE)
    assert source.name.startswith("MyNet@")
    assert source.build()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert from_file(file(CODE)) == source
    assert from_file(file(CODE + "\n")).name != source.name


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf" + CODE.encode(), "# coding: latin-1\n# ä\n".encode("latin-1") + CODE.encode()]
)
def test_a_file_is_decoded_as_python_does(file, text):
    assert "MyNet" in from_file(file(text)).text


NEIGHBOUR = "from torch import nn\n\ndef block():\n    return nn.Linear(784, {width})\n"


def test_a_file_may_import_the_modules_beside_it(file, tmp_path):
    """They are part of the text and are sent along; a module of the same name elsewhere is another one."""
    (tmp_path / "own_blocks" / "sub").mkdir(parents=True)
    (tmp_path / "own_blocks" / "__init__.py").write_text("from .sub.linear import block\n")
    (tmp_path / "own_blocks" / "sub" / "linear.py").write_text(NEIGHBOUR.format(width=10))
    code = "import own_blocks\n" + CODE.replace("nn.Linear(784, 10)", "own_blocks.block()")
    source = from_file(file(code))
    assert "return nn.Linear(784, 10)" in source.text
    assert not any(name.startswith("own_blocks") for name in sys.modules)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(code.replace("own_blocks.block()", "own_blocks.block(), nn.ReLU()"))
    (tmp_path / "other" / "own_blocks.py").write_text(NEIGHBOUR.format(width="5 * 2"))
    assert "5 * 2" in from_file(f"{tmp_path}/other/mine.py:MyNet").text
    (tmp_path / "own_blocks").rename(tmp_path / "moved")
    assert run_elsewhere(source, tmp_path) == str(source.build())


def test_dataclasses_and_later_annotations_work(file):
    dataclass = "from dataclasses import dataclass\n@dataclass\nclass Settings:\n    width: int = 10\n"
    code = f"from __future__ import annotations\n{dataclass}{CODE.replace('784, 10', '784, Settings().width')}"
    assert from_file(file(code)).build()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_a_class_of_a_notebook_may_use_what_other_cells_define(shell, tmp_path):
    """Its text is the class, and the user's code that it uses; a change of either, or of a size, is another network."""

    def source_with(block: str, width: int):
        shell.run_cell(f"from torch import nn\nWIDTH = {width}\ndef block():\n    return {block}", store_history=True)
        assert shell.run_cell(cell, store_history=True).success
        return from_object(shell.user_ns["MyNet"])

    cell = CODE.replace("nn.Linear(784, 10)", "nn.Linear(784, WIDTH), block(), nn.Linear(WIDTH, 10)") + "print(MyNet())"
    source = source_with("nn.ReLU()", 12)
    assert source.text.startswith("class MyNet(nn.Module):\n    def __init__")
    assert "print" not in source.text
    assert "return nn.ReLU()" in source.text
    assert run_elsewhere(source, tmp_path) == str(source.build())
    names = {source.name, source_with("nn.Tanh()", 12).name, source_with("nn.Tanh()", 11).name}
    assert len(names) == 3
    assert from_object(shell.user_ns["MyNet"]).name in names, "found again"


def test_where_no_code_is_available_the_source_says_so(shell):
    assert shell.run_cell(f"%%time\n{CODE}", store_history=True).success
    assert from_object(shell.user_ns["MyNet"]).text.startswith("# The code of MyNet is not available, ")


def test_functions_lambdas_and_partials_are_networks():
    source = from_object(small_network)
    assert source.text.startswith("def small_network(width: int = 10):")
    assert from_object(lambda: small_network(5)).name.startswith("lambda@")
    partials = [from_object(partial(small_network, width)) for width in (5, 6)]
    assert partials[0].name.startswith("partial@")
    assert partials[0].name != partials[1].name


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Other: pass", "mine.py defines no class or function 'MyNet'"),
        ("MyNet = dict", r"MyNet\(\) must return an nn.Module, not dict"),
        ("from torch import nn\nnn.Linear(missing, 3)", "mine.py cannot be imported: NameError: .*missing.*line 2"),
        ("import nothing_of_this_name", "mine.py cannot be imported: ModuleNotFoundError: .*nothing_of_this_name"),
        ("def MyNet(size):\n    pass", "MyNet cannot be built: TypeError: .*size"),
        ("def MyNet(:", r"mine.py cannot be imported: SyntaxError: .*line 1"),
        ("def MyNet():\n    return {}['width']", "MyNet cannot be built: KeyError: 'width'"),
        ("import sys\ndef MyNet():\n    sys.exit(3)", "MyNet cannot be built: SystemExit: 3"),
        ("import sys\nsys.exit(3)", "mine.py cannot be imported: SystemExit: 3"),
        (
            "import threading\nlock = threading.Lock()\ndef MyNet():\n    lock",
            "MyNet cannot be sent to another process",
        ),
        ("# coding: klingon", "mine.py cannot be read: unknown encoding"),
    ],
)
def test_code_that_fails_is_refused_in_one_line(file, code, message):
    with pytest.raises(NetworkError, match=message) as raised:
        from_file(file(code))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("place", ["missing.py:MyNet", ".:MyNet", "a\0b.py:MyNet"])
def test_a_missing_file_is_named(place):
    with pytest.raises(NetworkError, match="cannot be read"):
        from_file(place)


@pytest.mark.parametrize("place", ["mine.py", "mine.py:", ":MyNet", "", "mine.py:My Net"])
def test_a_place_without_file_or_name_is_refused(place):
    with pytest.raises(NetworkError, match="write a network as FILE.py:NAME, not"):
        from_file(place)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Linear(2, 3), "pass the class Linear, not an instance"),
        (lambda: None, r"lambda\(\) must return an nn.Module, not NoneType"),
        (5, "a network is a name, a line, FILE.py:NAME, or a class or function, not 5"),
    ],
    ids=str,
)
def test_what_is_no_network_is_refused(network, message):
    with pytest.raises(NetworkError, match=message):
        from_object(network)


class Own(nn.Module):
    """A network that changes its logits by a function, or by a layer that it keeps in a list."""

    def __init__(self, change):
        super().__init__()
        self.layer = nn.Linear(784, 10)
        self.layers = [change]

    def forward(self, images):
        return self.layers[0](self.layer(images.flatten(1)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(5, 10), r"it cannot take images \(2, 1, 28, 28\): RuntimeError: "),
        (lambda: nn.Linear(28, 12), r"it must return logits of shape \(N, 10\); for 2 images it gave \(2, 1, 28, 12\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), "it has no parameters to train"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "it has lazy layers, whose sizes are unknown"),
        (lambda: Own(lambda logits: logits.detach()), "it cannot be trained: its logits do not depend on"),
        (lambda: Own(lambda logits: logits * math.nan), "it gives logits that are not finite"),
        (lambda: Own(lambda logits: logits.view(2, 10)), r"it cannot take images \(3, 1, 28, 28\): RuntimeError: "),
        (lambda: Own(lambda logits: logits.sigmoid().mul(1).exp_().sigmoid_()), "it cannot be trained: RuntimeError: "),
        (lambda: Own(nn.Linear(10, 10)), "it has layers that it does not know of: use nn.ModuleList"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(build, message):
    before = torch.get_rng_state()
    with pytest.raises(NetworkError, match=message) as raised:
        check_network(build, "it")
    assert "\n" not in str(raised.value)
    assert torch.equal(torch.get_rng_state(), before)
