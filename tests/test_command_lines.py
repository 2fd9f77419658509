"""Every command line's help and errors, and the options that they share (`s5/training/command_line.py`)."""

import argparse
import re
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from s5.__main__ import COMMANDS
from s5.training.command_line import Parser, add_recipe_options, check_threads, output_file, path, recipe_changes
from s5.training.recipe import CHOICES, Recipe
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
    assert "  --" in done.stdout
    done = run_python("-c", SCRIPT, *command, "--no-such-option")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"[^\n]*\(see --help\)\n", done.stderr)


def test_the_commands_are_listed_and_an_unknown_one_is_an_error():
    for arguments, code in (([], 0), (["--help"], 0), (["train"], 2)):
        done = run_python("-m", "s5", *arguments)
        assert done.returncode == code
        assert all(f"  {name}" in done.stdout for name in COMMANDS)
    assert done.stderr == "\nthere is no command 'train'\n"


# --- Options of a recipe ----------------------------------------------------------------------------------------------


def make_parser(**options) -> Parser:
    parser = Parser("command", "What it does.", usage="command")
    add_recipe_options(parser, "recipe", **options)
    return parser


def test_every_field_of_a_recipe_has_an_option_with_its_help():
    text = " ".join(make_parser().format_help().split())
    for field in fields(Recipe):
        value = {"int": 7, "float": 0.25, "str": "s5", "bool": not field.default}.get(field.type)
        if field.name in CHOICES:
            value = next(choice for choice in CHOICES[field.name] if choice != field.default)
        option = "--" + field.name.replace("_", "-")
        arguments = [option, str(value)] if field.type != "bool" else [option.replace("--", "--" if value else "--no-")]
        changes = recipe_changes(make_parser().parse_args(arguments))
        assert changes == {field.name: value}
        assert type(changes[field.name]) is type(value)
        assert replace(Recipe(), **changes) != Recipe()
        assert field.metadata["help"] in text
    assert "(default" not in text
    with_defaults = " ".join(make_parser(defaults=Recipe(epochs=3)).format_help().split())
    assert "passes over the training images (default 3)" in with_defaults
    assert "--temperature" not in make_parser(skip=("teacher", "temperature")).format_help()


def test_only_options_on_the_command_line_are_changes():
    parser = make_parser(defaults=Recipe())
    parser.add_argument("--seed", type=int, default=0)
    assert recipe_changes(parser.parse_args(["--seed", "3"])) == {}
    options = parser.parse_args(["--epochs", "20", "--nesterov", "--lr", "0.1"])  # two of them repeat a default
    assert recipe_changes(options) == {"epochs": 20, "nesterov": True, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--epochs many", "argument --epochs: invalid int value: 'many'"),
        ("--momentum much", "argument --momentum: invalid float value: 'much'"),
        ("--schedule zigzag", "argument --schedule: invalid choice: 'zigzag'"),
        ("--nesterov yes", "unrecognized arguments: yes"),
        ("--epoch 3", "unrecognized arguments: --epoch 3"),
        ("--epochs", "argument --epochs: expected one argument"),
    ],
)
def test_bad_values_are_an_error_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_args(arguments.split())
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert re.fullmatch(rf"command: {re.escape(message)}[^\n]* \(see --help\)\n", err)


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2", 10**9])
def test_a_number_of_threads_that_makes_no_sense_is_named(threads):
    check_threads(None)
    check_threads(2)
    with pytest.raises(ValueError, match="threads must be a whole number from 1 to 1,024, not"):
        check_threads(threads)


# --- Names of files, and output ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", 300 * "n", "folder/" + 300 * "n", 3000 * "n/", 150 * "é"])
def test_names_that_no_file_system_takes_are_refused(name):
    for option in (path, output_file):
        with pytest.raises(argparse.ArgumentTypeError, match=r"\Athe name is (empty|too long: [^\n]{1,70})\Z"):
            option(name)


def test_other_names_are_taken_as_they_are_but_a_file_to_write_is_no_folder(tmp_path):
    for name in ("run", "a folder/run.jsonl", "/", 200 * "n", "×/é"):
        assert str(path(name)) == name
    assert output_file(str(tmp_path / "new")).name == "new"
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"{tmp_path} is a folder, not a file")):
        output_file(str(tmp_path))


RUN = "from s5.training.command_line import run_command; run_command(lambda: print({}, flush=True))"


def test_a_reader_that_stops_ends_the_command_in_silence():
    """As `| head` does, after its ten lines."""
    command = [sys.executable, "-c", RUN.format("100_000 * 'a line\\n'")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1


def test_bytes_that_are_no_text_do_not_break_the_output():
    """A file's name may contain them; a plain UTF-8 stream would raise an error instead of printing it."""
    done = run_python("-c", RUN.format("'name \\udcff'"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "name \\udcff\n", "")
