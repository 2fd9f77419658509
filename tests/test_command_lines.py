"""Every command line's help and errors, and the options that they share (`s5/training/command_line.py`)."""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from s5.training.command_line import Parser, add_recipe_options, output_file, path, recipe_changes
from s5.training.recipe import CHOICES, Recipe
from tests.utils import ROOT

RECIPE_OPTIONS = {"--" + field.name.replace("_", "-") for field in fields(Recipe)}
DISTILLATION = {"--teacher", "--teachers", "--teacher-weight", "--temperature"}
SWEEP = {"--variants", "--seeds", "--split", "--sample", "--ledger", "--weights", "--dry-run", "--device", "--network"}
OPTIONS = {
    "main": {
        "--seed",
        "--device",
        "--precision",
        "--data",
        "--smoke",
        "--output",
        "--resume",
        *(RECIPE_OPTIONS - DISTILLATION),
    },
    "s5.experiments.sweep": {
        *SWEEP,
        "--precision",
        "--workers",
        "--ray",
        "--gpus-per-trial",
        "--retries",
        "--limit",
        *RECIPE_OPTIONS,
    },
    "s5.experiments.compare": {
        *{"NETWORK", "OTHER", "--seeds", "--sample", "--device", "--precision", "--workers", "--figure"},
        *RECIPE_OPTIONS,
    },
    "s5.experiments.search": {
        *{"--below", "--trials", "--seed", "--epochs", "--vary-rate", "--sample", "--dry-run", "--figure"},
        *{"--device", "--precision", "--workers", "--ray"},
    },
    "s5.reports.write": {"--check", "--figures", "--logits"},
    "s5.inference.predict": {"IMAGE", "--network", "--json", "--show", "--prepared", "--weights"},
    "s5.inference.demo": {"--host", "--port", "--network", "--weights"},
    "s5.deployment.export": {
        *{"--network", "--c", "--all", "--normalized", "--output", "--weights", "--repeats", "--record", "--smoke"},
    },
    "s5.benchmarks.faults": {"--rounds", "--output"},
    "s5.benchmarks.bench": {"--only", "--repeats", "--smoke", "--output", "--seeds", "--first-seed", "--device"},
}
HELP, BAD_OPTION = "--help", "--no-such-option"

# In one process, since starting Python is most of the time: each command as `python -m COMMAND ARGUMENT` runs it.
RUN_COMMANDS = """
import contextlib, io, json, runpy, sys, time

results = []
for command, argument in json.loads(sys.argv[1]):
    sys.argv = [command, argument]
    output, errors, code = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO()), 0
    before, start = set(sys.modules), time.perf_counter()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        except SystemExit as stopped:
            code = stopped.code
    result = {"code": code, "seconds": time.perf_counter() - start}
    result["modules"] = sorted({name.partition(".")[0] for name in set(sys.modules) - before})
    for name, stream in (("output", output), ("errors", errors)):
        stream.seek(0)
        result[name] = stream.read()
    results.append(result)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results():
    """{(command, argument): exit code, seconds, output, errors, modules that were imported}."""
    runs = [(command, argument) for command in OPTIONS for argument in (HELP, BAD_OPTION)]
    command = [sys.executable, "-c", RUN_COMMANDS, json.dumps(runs)]
    environment = {**os.environ, "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert process.returncode == 0, process.stderr
    return dict(zip(runs, json.loads(process.stdout), strict=True))


@pytest.mark.parametrize("command", OPTIONS)
def test_help_lists_every_option(results, command):
    result = results[command, HELP]
    assert (result["code"], result["errors"]) == (0, "")
    start = "usage: python main.py" if command == "main" else f"usage: python -m {command} "
    assert result["output"].startswith(start)
    assert set(re.findall(r"^  (--[\w-]+|[A-Z]+)", result["output"], re.MULTILINE)) == OPTIONS[command]


@pytest.mark.parametrize("command", OPTIONS)
def test_help_is_printed_without_loading_torch(results, command):
    result = results[command, HELP]
    heavy = {"torch", "torchvision", "numpy", "pandas", "matplotlib", "scipy", "PIL", "ray", "gradio", "onnxruntime"}
    assert not heavy & set(result["modules"])
    assert result["seconds"] < 2


@pytest.mark.parametrize("command", OPTIONS)
def test_an_unknown_option_is_an_error_in_one_line(results, command):
    result = results[command, BAD_OPTION]
    assert (result["code"], result["output"]) == (2, "")
    assert result["errors"].count("\n") == 1
    assert "(see --help)" in result["errors"]
    assert "torch" not in result["modules"]


# --- Options of a recipe ----------------------------------------------------------------------------------------------


def make_parser(**options) -> Parser:
    parser = Parser("command", "What it does.", usage="command")
    add_recipe_options(parser, "recipe", **options)
    return parser


def other_value(field) -> object:
    """A value of a recipe's field that differs from its default."""
    if field.name in CHOICES:
        return next(choice for choice in CHOICES[field.name] if choice != field.default)
    return {"int": 7, "float": 0.25, "str": "s5", "bool": not field.default}[field.type]


@pytest.mark.parametrize("field", fields(Recipe), ids=lambda field: field.name)
def test_every_field_of_a_recipe_has_an_option(field):
    option, value = "--" + field.name.replace("_", "-"), other_value(field)
    arguments = [option, str(value)]
    if field.type == "bool":
        arguments = [option if value else option.replace("--", "--no-")]
    changes = recipe_changes(make_parser().parse_args(arguments))
    assert changes == {field.name: value}
    assert type(changes[field.name]) is type(value)
    assert replace(Recipe(), **changes) != Recipe()


def test_only_options_on_the_command_line_are_changes():
    parser = make_parser(defaults=Recipe())
    parser.add_argument("--seed", type=int, default=0)
    assert recipe_changes(parser.parse_args(["--seed", "3"])) == {}
    options = parser.parse_args(["--epochs", "20", "--nesterov", "--lr", "0.1"])  # two of them repeat a default
    assert recipe_changes(options) == {"epochs": 20, "nesterov": True, "learning_rate": 0.1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "many"], "argument --epochs: invalid int value: 'many'"),
        (["--momentum", "much"], "argument --momentum: invalid float value: 'much'"),
        (["--schedule", "zigzag"], "argument --schedule: invalid choice: 'zigzag'"),
        (["--nesterov", "yes"], "unrecognized arguments: yes"),
        (["--epochs"], "argument --epochs: expected one argument"),
    ],
)
def test_bad_values_are_an_error_in_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        make_parser().parse_args(arguments)
    out, err = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert err.startswith(f"command: {message}")
    assert err.endswith("(see --help)\n")
    assert err.count("\n") == 1


def test_help_describes_every_field():
    text = " ".join(make_parser().format_help().split())
    for field in fields(Recipe):
        assert field.metadata["help"] in text
    for choices in CHOICES.values():
        assert f"{{{','.join(choices)}}}" in text
    assert "What it does." in text


def test_help_shows_the_defaults_only_if_there_are_some():
    assert "(default" not in make_parser().format_help()
    text = " ".join(make_parser(defaults=Recipe(epochs=3)).format_help().split())
    assert "passes over the training images (default 3)" in text
    assert "images per step (default 128)" in text


def test_skipped_fields_have_no_option(capsys):
    parser = make_parser(skip=("teacher", "temperature"))
    assert "--temperature" not in parser.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["--temperature", "2"])
    assert recipe_changes(argparse.Namespace(seed=1)) == {}


# --- Names of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", 300 * "n", "folder/" + 300 * "n", 3000 * "n/", 150 * "é"])
def test_names_that_no_file_system_takes_are_refused(name):
    for option in (path, output_file):
        with pytest.raises(argparse.ArgumentTypeError, match=r"\Athe name is (empty|too long: [^\n]{1,70})\Z"):
            option(name)


@pytest.mark.parametrize("name", ["run", "a folder/run.jsonl", "/", 200 * "n", "×/é"])
def test_other_names_are_taken_as_they_are(name):
    assert str(path(name)) == name


def test_a_file_to_write_may_exist_or_not_but_is_no_folder(tmp_path):
    (tmp_path / "old").touch()
    assert [output_file(str(tmp_path / name)).name for name in ("old", "new")] == ["old", "new"]
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"{tmp_path} is a folder, not a file")):
        output_file(str(tmp_path))


def test_every_option_that_names_a_file_checks_the_name():
    folders = ("training", "analysis", "experiments", "inference", "benchmarks")
    files = [ROOT / "main.py", *(path for folder in folders for path in (ROOT / folder).glob("*.py"))]
    assert [file.name for file in files if "type=Path" in file.read_text(encoding="utf-8")] == []


def test_a_reader_that_stops_ends_the_command_in_silence():
    """As `| head` does, after its ten lines."""
    code = "from s5.training.command_line import run_command; run_command(lambda: print(100_000 * 'a line\\n') or 0)"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1


def test_bytes_that_are_no_text_do_not_break_the_output():
    """A file's name may contain them; a plain UTF-8 stream would raise an error instead of printing it."""
    code = "from s5.training.command_line import run_command; run_command(lambda: print('name \\udcff', flush=True))"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (0, "name \\udcff\n", "")
