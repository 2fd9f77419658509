"""Networks from files and from code that is only in memory."""

import math
import pickle
import re
import sys

import pytest
import torch
from torch import nn

from s5.networks.user_code import NetworkError, Source, check_network, from_file, from_object

CODE = """
class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, images):
        return self.layers(images)
"""


def small_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        return f"{tmp_path}/mine.py:MyNet"

    return write


def test_a_class_in_a_file_is_built_anywhere_from_its_text(file):
    source = pickle.loads(pickle.dumps(from_file(file(CODE))))
    assert source.text == CODE
    assert source.name.startswith("MyNet@")
    assert source.build()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert from_file(file(CODE + "\n")).name != source.name


def test_a_function_is_known_by_its_text():
    source = from_object(small_network)
    assert source.function == "small_network"
    assert source.text.startswith("def small_network():")
    torch.manual_seed(0)
    expected = small_network()
    torch.manual_seed(0)
    assert torch.equal(source.build()[1].weight, expected[1].weight)


def test_a_class_of_a_notebooks_cell():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    cell = f"from torch import nn\n@(lambda network: network)\n{CODE.strip()}"
    assert shell.run_cell(cell, store_history=True).success
    source = from_object(shell.user_ns["MyNet"])
    assert source.text == f"@(lambda network: network)\n{CODE.strip()}\n"
    assert source.build()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Other: pass", "'MyNet' is not defined in the network's code"),
        ("MyNet = dict", r"MyNet\(\) must return an nn.Module, not dict"),
        ("def MyNet():\n    return nn.Linear(missing, 3)", r"MyNet cannot be built: NameError: .*missing.*\(line 2\)"),
        ("def MyNet(size):\n    pass", "MyNet cannot be built: TypeError: .*size"),
        ("def MyNet(:", "MyNet cannot be built: SyntaxError"),
        ("def MyNet():\n    return {}['width']", "MyNet cannot be built: KeyError: 'width'"),
        ("def MyNet():\n    raise KeyError", "MyNet cannot be built: KeyError"),
        ("import sys\ndef MyNet():\n    sys.exit(3)", "MyNet cannot be built: SystemExit: 3"),
        ("def MyNet():\n    return Block()", "NameError: name 'Block' .*import and define all it needs"),
    ],
)
def test_code_that_fails_is_refused_in_one_line(file, code, message):
    with pytest.raises(NetworkError, match=message) as raised:
        from_file(file(code))
    assert "\n" not in str(raised.value)


def test_a_fault_in_a_file_names_the_file(file):
    place = file("def MyNet(:")
    with pytest.raises(NetworkError, match=f"^{re.escape(place.rpartition(':')[0])}: MyNet cannot be built"):
        from_file(place)


def test_a_cells_class_without_methods_is_refused_with_advice():
    made = type("Bare", (nn.Linear,), {"__module__": "__main__"})
    with pytest.raises(NetworkError, match="with a method of its own"):
        from_object(made)


@pytest.mark.parametrize("place", ["missing.py:MyNet", ".:MyNet", "a\0b.py:MyNet"])
def test_a_missing_file_is_named(place):
    with pytest.raises(NetworkError, match="cannot be read"):
        from_file(place)


@pytest.mark.parametrize("place", ["mine.py", "mine.py:", ":MyNet", ":", "", "mine.py:My Net"])
def test_a_place_without_file_or_name_is_refused(place):
    with pytest.raises(NetworkError, match="write a network as FILE.py:NAME, not"):
        from_file(place)


@pytest.mark.parametrize(
    ("network", "name"),
    [(nn.Linear(2, 3), "pass the class Linear, not an instance"), (lambda: None, "<lambda>"), (dict, "dict")],
)
def test_what_is_no_class_or_function_with_code_is_refused(network, name):
    with pytest.raises(NetworkError, match=name):
        from_object(network)


class Own(nn.Module):
    """A network that changes its logits by a function, or by a layer that it keeps in a list."""

    def __init__(self, change):
        super().__init__()
        self.layer = nn.Linear(784, 10)
        self.layers = [change]

    def forward(self, images):
        return self.layers[0](self.layer(images.flatten(1)))


class WrongOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(28, 12)

    def forward(self, images):
        return self.layer(images)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(5, 10), r"it cannot take images \(2, 1, 28, 28\): RuntimeError: "),
        (WrongOutput, r"it must return logits of shape \(N, 10\); for 2 images it gave \(2, 1, 28, 12\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10)), "it has no parameters to train"),
        (lambda: nn.LSTM(28, 10), "it cannot take images"),
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "it has lazy layers, whose sizes are unknown"),
        (lambda: Own(lambda logits: logits.detach()), "it cannot be trained: its logits do not depend on"),
        (lambda: Own(lambda logits: logits * math.nan), "it gives logits that are not finite"),
        (lambda: Own(lambda logits: logits.view(2, 10)), r"it cannot take images \(3, 1, 28, 28\): RuntimeError: "),
        (lambda: Own(lambda logits: logits.sigmoid().mul(1).exp_().sigmoid_()), "it cannot be trained: RuntimeError: "),
        (lambda: Own(nn.Linear(10, 10)), "it has layers that it does not know of: use nn.ModuleList"),
    ],
)
def test_a_network_of_other_shapes_is_refused_before_training(build, message):
    with pytest.raises(NetworkError, match=message) as raised:
        check_network(build, "it")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("line", ["import own_blocks", "from own_blocks import block"])
def test_code_that_imports_a_file_beside_it_is_refused(line, tmp_path, monkeypatch):
    """Its text would stay the same when that file is changed, and the recorded trials would be of another network."""
    (tmp_path / "own_blocks.py").write_text("from torch import nn\nblock = nn.Linear(784, 10)\n")
    (tmp_path / "mine.py").write_text(f"{line}\n{CODE}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NetworkError, match="imports own_blocks, a file of yours: a network's code must contain all"):
        from_file("mine.py:MyNet")
    del sys.modules["own_blocks"]


def test_modules_that_are_built_into_python_are_no_files_beside_it(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(f"import sys\n{CODE}")
    monkeypatch.chdir("/")
    assert isinstance(from_file(f"{tmp_path / 'mine.py'}:MyNet").build(), nn.Module)


def test_a_missing_module_gives_a_hint(tmp_path):
    (tmp_path / "mine.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(NetworkError, match="ModuleNotFoundError: .* define all it needs in the same"):
        from_file(f"{tmp_path / 'mine.py'}:MyNet")


def test_checking_a_network_leaves_the_random_state():
    before = torch.get_rng_state()
    check_network(small_network, "it")
    check_network(Source("MyNet", CODE).build, "it")
    assert torch.equal(torch.get_rng_state(), before)


def test_annotations_are_what_the_code_says():
    text = """def MyNet(width: int = 10) -> nn.Module:
    assert MyNet.__annotations__["width"] is int
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width))
"""
    assert isinstance(Source("MyNet", text).build(), nn.Module)


def test_dataclasses_and_later_annotations_work():
    text = """from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Settings:
    width: int = 10

def MyNet() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, Settings().width))
"""
    assert Source("MyNet", text).build()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
