"""python -m s5 NAME [options]: the commands of the suite. `python -m s5` lists them."""

import importlib
import sys

from s5.training.command_line import run_command

COMMANDS = {
    "sweep": "train variants from several seeds and record the trials in a ledger",
    "compare": "compare two networks, seed by seed",
    "search": "find the best network below a number of parameters",
    "predict": "read digits in image files",
    "export": "write a trained network as a web page, ONNX or C",
    "report": "write or check the tables of README.md and RESULTS.md",
    "bench": "measure how fast training and inference are",
}


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names; returns its exit code, 2 for an unknown name."""
    name, *options = arguments or ["--help"]
    if name in COMMANDS:
        return importlib.import_module(f"s5.commands.{name}").main(options)
    print("usage: python -m s5 NAME [options]    (python -m s5 NAME --help: its options)\n")
    print("\n".join(f"  {name:<8} {about}" for name, about in COMMANDS.items()))
    if name in ("-h", "--help"):
        return 0
    print(f"\nthere is no command {name!r}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    run_command(lambda: main(sys.argv[1:]))
