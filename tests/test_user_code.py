"""Networks from files and from code that is only in memory."""

import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import nn

from s5.networks.user_code import NetworkError, from_file, from_object
from tests.utils import ROOT

CLASS = """class MyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

    def forward(self, images):
        return self.layers(images)
"""
CODE = f"from __future__ import annotations\nfrom torch import nn\n{CLASS}"


def small_network(width: int = 10):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Linear(width, 10))


@pytest.fixture
def file(tmp_path):
    def write(text: str, folder: str = ".") -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "mine.py").write_text(text)
        return f"{tmp_path}/{folder}/mine.py:MyNet"

    return write


def run_elsewhere(source, tmp_path) -> str:
    """Build the network in a new process, which has only the project; return what it prints."""
    (tmp_path / "source.pkl").write_bytes(pickle.dumps(source))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'source.pkl')!r}, 'rb')).build())"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_a_class_of_a_file_is_named_by_its_text(file):
    source = from_file(file(CODE))
    assert source.text == CODE
    assert source.name.startswith("MyNet@")
    assert source.build()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert from_file(file(CODE)) == source
    assert from_file(file(CODE + "\n")).name != source.name


def test_a_file_may_import_the_modules_beside_it(file, tmp_path):
    """They are sent along; a module of the same name elsewhere is another one."""
    package = tmp_path / "own_blocks"
    (package / "sub").mkdir(parents=True)
    (package / "__init__.py").write_text("from .sub.linear import block\n")
    (package / "sub" / "linear.py").write_text("from torch import nn\n\ndef block():\n    return nn.Linear(784, 10)\n")
    code = "import own_blocks\n" + CLASS.replace("nn.Linear(784, 10)", "own_blocks.block()")
    source = from_file(file("from torch import nn\n" + code))
    assert not any(name.startswith("own_blocks") for name in sys.modules)
    other = file("from torch import nn\n" + code, "other")
    (tmp_path / "other" / "own_blocks.py").write_text("from torch import nn\nblock = lambda: nn.LazyLinear(10)\n")
    with pytest.raises(NetworkError, match="lazy layers"):
        from_file(other)
    package.rename(tmp_path / "moved")
    assert run_elsewhere(source, tmp_path) == str(source.build())


def test_a_class_of_a_notebook_is_its_text_and_may_use_what_other_cells_define(tmp_path):
    shell = InteractiveShell()
    shell.run_cell("from torch import nn\nWIDTH = 10", store_history=True)
    for before in ("", "%%time\n"):
        cell = before + CLASS.replace("10))", "WIDTH))") + "print(MyNet())"
        assert shell.run_cell(cell, store_history=True).success
        source = from_object(shell.user_ns["MyNet"])
        if before:  # IPython keeps no code of such a cell
            assert source.text.startswith("# The code of MyNet is not available, ")
        else:
            assert source.text == CLASS.replace("10))", "WIDTH))")
        assert run_elsewhere(source, tmp_path) == str(source.build())


def test_functions_lambdas_and_partials_are_networks():
    assert from_object(small_network).text.startswith("def small_network(width: int = 10):")
    assert from_object(lambda: small_network(5)).name.startswith("lambda@")
    names = {from_object(partial(small_network, width)).name for width in (5, 6)}
    assert len(names) == 2
    assert all(name.startswith("partial@") for name in names)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Other: pass", "mine.py defines no class or function 'MyNet'"),
        ("from torch import nn\nnn.Linear(missing, 3)", "mine.py cannot be imported: NameError: .*missing.*line 2"),
        ("def MyNet(:", r"mine.py cannot be imported: SyntaxError: .*line 1"),
        ("def MyNet():\n    return {}['width']", "MyNet: it cannot be built: KeyError: 'width'"),
        ("MyNet = dict", "MyNet: model must be a network such as"),
        ("from torch import nn\ndef MyNet():\n    return nn.Linear(5, 10)", r"cannot take images of shape \(N, 1, 28"),
        ("from torch import nn\ndef MyNet():\n    return nn.Linear(28, 12)", r"must return logits of shape \(N, 10\)"),
        ("from torch import nn\nMyNet = nn.Flatten", "MyNet: the model has no parameters to train"),
    ],
)
def test_code_that_fails_is_refused_in_one_line(file, code, message):
    before = torch.get_rng_state()
    with pytest.raises(NetworkError, match=message) as raised:
        from_file(file(code))
    assert "\n" not in str(raised.value)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("find", "network", "message"),
    [
        (from_file, "missing.py:MyNet", "missing.py cannot be imported: FileNotFoundError: "),
        (from_file, "mine.py", "write a network as FILE.py:NAME, not 'mine.py'"),
        (from_object, nn.Linear(2, 3), "Linear: architecture must be a class or function, not a network: write Linear"),
        (from_object, 5, "int: architecture must be a class or function that returns a network, not 5"),
    ],
    ids=["no file", "no name", "a network", "a number"],
)
def test_what_is_no_network_is_refused(find, network, message):
    with pytest.raises(NetworkError, match=message):
        find(network)
