"""Train the final model (18,214 parameters) on MNIST and save what came of it.

python main.py                      20 epochs, results under runs/
python main.py --smoke              two epochs on a small sample, to see that everything works
python main.py --resume runs/NAME   go on with a run that was cut off
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from recipe import Recipe  # the only import of ours that --help needs: torch takes seconds to load

CHECKPOINT, RESULTS = "checkpoint.pt", ("weights.safetensors", "history.json", "curves.png")
INTERRUPTED = 130  # the shell's exit code for Ctrl-C


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the command line in one line, without the usage before it."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the `recipe` that it asks for; exits with code 2 on a bad one."""
    defaults = Recipe()
    parser = Parser("main.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, metavar="N", help=f"passes over the data (default {defaults.epochs})")
    group.add_argument("--batch-size", type=int, metavar="N", help=f"default {defaults.batch_size}")
    rate = f"the peak rate (default {defaults.learning_rate})"
    group.add_argument("--learning-rate", "--lr", type=float, metavar="X", help=rate)
    group.add_argument("--seed", type=int, metavar="N", help="of weights, order and augmentation (default 0)")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps (default auto)")
    group = parser.add_argument_group("data").add_mutually_exclusive_group()
    group.add_argument("--data", type=Path, metavar="DIR", help="MNIST folder (default: $MNIST_ROOT, then data/)")
    group.add_argument("--smoke", action="store_true", help="two epochs on a small sample; needs no download")
    group = parser.add_argument_group("results").add_mutually_exclusive_group()
    group.add_argument("--output", type=Path, metavar="DIR", help="default: a new folder under runs/")
    group.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    options = parser.parse_args(arguments)

    for name, folder in (("--data", options.data), ("--output", options.output)):
        if folder and folder.exists() and not folder.is_dir():
            parser.error(f"{name} {folder}: this is a file, not a folder")
    if options.data and not options.data.exists():
        parser.error(f"--data {options.data}: there is no such folder")
    if options.output and any((options.output / name).exists() for name in (CHECKPOINT, *RESULTS)):
        parser.error(f"--output {options.output} holds a run already: --resume it, or choose another folder")
    if options.resume and not (options.resume / CHECKPOINT).is_file():
        parser.error(f"--resume {options.resume}: there is no {CHECKPOINT} in it")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        parser.error(f"--seed must be a whole number, 0 or more and below 2^63, not {options.seed}")
    try:
        options.recipe = replace(defaults.for_smoke() if options.smoke else defaults, **given(options))
        if options.device != "auto":  # "auto" always finds one, so torch can wait
            from helpers import pick_device

            pick_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    return options


def given(options: argparse.Namespace) -> dict:
    """The recipe's values that the command line sets."""
    values = {name: getattr(options, name) for name in ("epochs", "batch_size", "learning_rate")}
    return {name: value for name, value in values.items() if value is not None}


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns its exit code: 0, 1 for a failure, 130 after Ctrl-C."""
    options = parse_arguments(arguments)

    import helpers

    try:
        if options.resume:
            recall(options)
        options.seed = options.seed or 0
        prepare_output(options)
        return run(options, helpers.load_sample() if options.smoke else helpers.load_mnist(options.data))
    except (helpers.DataError, helpers.CheckpointError, helpers.DivergenceError, OSError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1


def recall(options: argparse.Namespace) -> None:
    """Set what the command line leaves open to what the run was started with; `fit` refuses what differs."""
    import helpers

    stored = helpers.load_checkpoint(options.resume / CHECKPOINT)
    try:
        options.recipe = replace(Recipe(**stored["recipe"]), **given(options))
        options.device = helpers.pick_device(stored["device"] if options.device == "auto" else options.device)
    except (TypeError, ValueError) as error:  # a recipe of another version; a device that is not here
        raise helpers.CheckpointError(f"{options.resume} cannot be resumed here: {error}") from error
    if options.seed is None:
        options.seed = stored["seed"]
    if options.data is None and "SAMPLE" in stored["data"]:
        options.smoke = True
    if len(stored["history"]) == options.recipe.epochs:
        print("This run is complete: nothing is left to train, and its results are written again.")


def prepare_output(options: argparse.Namespace) -> None:
    """Make the folder and see that it can be written, before hours are spent on what goes there."""
    chosen = options.resume or options.output
    options.output = chosen or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-seed{options.seed}"
    try:
        options.output.mkdir(parents=True, exist_ok=chosen is not None)
        tempfile.TemporaryFile(dir=options.output).close()
    except OSError as error:
        raise OSError(f"cannot write into {options.output}: {error.strerror}") from error


def run(options: argparse.Namespace, data) -> int:
    """Train, print and save; return the exit code."""
    import helpers
    from files import atomic_path
    from report import describe_result

    recipe, seed, output = options.recipe, options.seed, options.output
    model = helpers.build(seed=seed)
    print(helpers.summary(model))
    print(data)
    print(f"Device {helpers.pick_device(options.device)}, seed {seed}, {recipe}\n")

    history = helpers.fit(model, data, recipe, seed, options.device, output / CHECKPOINT, bool(options.resume))
    if not history:  # Ctrl-C in the first epoch; `fit` has said so
        return INTERRUPTED

    result = describe_result(history[-1]["test_correct"], data)
    record = {"result": result, "data": data.source, "split": data.split, "seed": seed}
    record |= {"recipe": recipe.as_dict(), "history": history}
    helpers.save_weights(model, output / "weights.safetensors", {"data": data.source, "result": result})
    with atomic_path(output / "history.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    helpers.save_figure(helpers.plot_curves(history, title=result), output / "curves.png")

    complete = len(history) == recipe.epochs
    print(f"\n{result}" if complete else f"\nAfter {len(history)} of {recipe.epochs} epochs: {result}")
    print(f"Saved in {output}: {', '.join(RESULTS)}, {CHECKPOINT}")
    if not complete:
        where = ["--resume", str(output), *(["--data", str(options.data)] if options.data else [])]
        print(f"To go on: python main.py {shlex.join(where)}")
    return 0 if complete else INTERRUPTED


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")  # Windows writes a file in an older one, which lacks └ and –
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # outside `fit`: while something was loaded or saved
        sys.exit(INTERRUPTED)
