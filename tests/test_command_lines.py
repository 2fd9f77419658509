"""Every command line's help and errors, and the options that they share (`s5/training/command_line.py`)."""

import re
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from s5.__main__ import COMMANDS
from s5.training.command_line import Parser, add_recipe_options, recipe_changes
from s5.training.recipe import Recipe
from tests.utils import ROOT

# Runs a command with one option, and says whether torch was loaded for that.
SCRIPT = """
import importlib, sys

module, *arguments = sys.argv[1:]
try:
    code = importlib.import_module(module).main(arguments)
except SystemExit as stopped:
    code = stopped.code
assert "torch" not in sys.modules, "torch was loaded"
sys.exit(code)
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-X", "utf8", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=60)


@pytest.mark.parametrize("command", [("main",), *(("s5.__main__", name) for name in COMMANDS)], ids=" ".join)
def test_help_and_an_unknown_option_are_answered_without_loading_torch(command):
    usage = "usage: python main.py " if command == ("main",) else f"usage: python -m s5 {command[-1]} "
    done = run_python("-c", SCRIPT, *command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(usage)
    assert "--help" in done.stdout
    done = run_python("-c", SCRIPT, *command, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"[^\n]*\(see --help\)\n", done.stderr)


def test_the_commands_are_listed_and_an_unknown_one_is_an_error():
    for arguments, code in (([], 0), (["train"], 2)):
        done = run_python("-m", "s5", *arguments)
        assert done.returncode == code
        assert all(f"  {name}" in done.stdout for name in COMMANDS)
    assert done.stderr == "\nthere is no command 'train'\n"


def make_parser(**options) -> Parser:
    parser = Parser("command", "What it does.", usage="command")
    add_recipe_options(parser, "recipe", **options)
    return parser


def test_every_field_of_a_recipe_has_an_option_with_its_help():
    text = " ".join(make_parser(defaults=Recipe(epochs=3)).format_help().split())
    assert "passes over the training images (default 3)" in text
    for field in fields(Recipe):
        words = [word for word in field.metadata["allowed"] if word != field.default] if field.type is str else []
        value = words[0] if words else {int: 7, float: 0.25, str: "s5", bool: False}[field.type]
        option = field.name.replace("_", "-")
        arguments = [f"--no-{option}"] if field.type is bool else [f"--{option}", str(value)]
        changes = recipe_changes(make_parser().parse_args(arguments))
        assert changes == {field.name: value}
        assert replace(Recipe(), **changes) != Recipe()
        assert field.metadata["help"] in text
    assert "--temperature" not in make_parser(skip=("teacher", "temperature")).format_help()


def test_a_reader_that_stops_ends_the_command_in_silence():
    """As `| head` does, after its ten lines."""
    script = "from s5.training.command_line import run_command; run_command(lambda: print(100_000 * 'a line\\n'))"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1
