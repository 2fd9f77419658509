"""Networks from files and from code that is only in memory."""

import importlib
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


@pytest.mark.parametrize("magic", ["", "%%time\n", "%%capture\n"])
def test_a_class_of_a_notebook_is_its_text_with_what_it_uses_of_other_cells(magic, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "__main__", None)  # IPython puts its own there
    shell = InteractiveShell.instance()
    try:
        code = CLASS.replace("nn.Linear(784, 10)", "block()")
        for width in (10, 12):
            helper = "def block():\n    return nn.Sequential(nn.Linear(784, WIDTH), nn.Linear(WIDTH, 10))\n"
            shell.run_cell(f"from torch import nn\nUNUSED = 3\nWIDTH = {width}", store_history=True)
            shell.run_cell(helper, store_history=True)
            assert shell.run_cell(f"{magic}{code}print(MyNet())", store_history=True).success
            source = from_object(shell.user_ns["MyNet"])
            assert source.text == f"WIDTH = {width}\n{helper}{code}"
            assert run_elsewhere(source, tmp_path) == str(source.build())
    finally:
        InteractiveShell.clear_instance()


def test_functions_lambdas_and_partials_are_networks():
    assert from_object(small_network).text.startswith("def small_network(width: int = 10):")
    own = from_object(lambda: small_network(5))
    assert own.name.startswith("lambda@")
    assert own.text.startswith("def small_network(width: int = 10):")
    partials = [from_object(partial(small_network, width)) for width in (5, 6)]
    assert len({source.name for source in partials}) == 2
    assert all(source.name.startswith("small_network@") for source in partials)
    assert partials[0].text.endswith("Linear(width, 10))\n# called with (5,) {}\n")
    assert from_object(partial(small_network, 5)) == partials[0]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_a_file_is_read_as_python_reads_it_and_an_imported_class_is_that_of_its_file(encoding, tmp_path, monkeypatch):
    declared = "" if encoding.startswith("utf") else f"# -*- coding: {encoding} -*-\n"
    path = tmp_path / "Grün und blau" / f"own_{encoding.replace('-', '_')}.py"
    path.parent.mkdir()
    path.write_bytes(
        f"{declared}# Zürich\nWIDTH = 10\n{CODE.replace('from __future__ import annotations', '')}".encode(encoding)
    )
    source = from_file(f"{path}:MyNet")
    assert "# Zürich\nWIDTH = 10" in source.text
    monkeypatch.syspath_prepend(path.parent)
    assert from_object(importlib.import_module(path.stem).MyNet) == source
    assert run_elsewhere(source, tmp_path) == str(source.build())


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Other: pass", "mine.py defines no class or function 'MyNet'"),
        ("from torch import nn\nnn.Linear(missing, 3)", "mine.py cannot be imported: NameError: .*missing.*line 2"),
        ("def MyNet(:", r"mine.py cannot be imported: SyntaxError: .*line 1"),
        ("def MyNet():\n    return {}['width']", "MyNet: it cannot be built: KeyError: 'width'"),
        ("MyNet = dict", "MyNet: model must be a network such as"),
        ("from torch import nn\ndef MyNet():\n    return nn.Linear(5, 10)", r"cannot take images of shape \(2, 1, 28"),
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
        (from_file, "missing.py:MyNet", "there is no file missing.py"),
        (from_file, "mine.py", "write a network as FILE.py:NAME, not 'mine.py'"),
        (from_object, nn.Linear(2, 3), "Linear: architecture must be a class or function, not a network: write Linear"),
        (from_object, 5, "int: architecture must be a class or function that returns a network, not 5"),
    ],
    ids=["no file", "no name", "a network", "a number"],
)
def test_what_is_no_network_is_refused(find, network, message):
    with pytest.raises(NetworkError, match=message):
        find(network)
