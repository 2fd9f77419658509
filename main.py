"""Train the final model (18,214 parameters) on MNIST and save what came of it.

python main.py                      20 epochs, results under runs/
python main.py --smoke              one epoch on a small sample, to see that everything works
python main.py --resume runs/NAME   go on with a run that was cut off
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from recipe import Recipe  # the only import that --help needs: torch takes seconds to load

INTERRUPTED = 130  # the shell's exit code for Ctrl-C


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; options that were not given are None. Exits with code 2 on a bad one."""
    defaults = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, metavar="N", help=f"passes over the data (default {defaults.epochs})")
    training.add_argument("--batch-size", type=int, metavar="N", help=f"default {defaults.batch_size}")
    training.add_argument(
        "--learning-rate", "--lr", type=float, metavar="X", help=f"the peak rate (default {defaults.learning_rate})"
    )
    training.add_argument(
        "--seed", type=int, metavar="N", help="0 or more; of weights, order, augmentation (default 0)"
    )
    training.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps (default auto)")
    files = parser.add_argument_group("files")
    files.add_argument("--data", type=Path, metavar="DIR", help="MNIST folder (default: $MNIST_ROOT, then data/)")
    files.add_argument("--output", type=Path, metavar="DIR", help="default: a new folder under runs/")
    files.add_argument("--resume", type=Path, metavar="DIR", help="go on with the run in this folder")
    parser.add_argument("--smoke", action="store_true", help="one epoch on a small sample; needs no download")
    options = parser.parse_args(arguments)

    if options.resume and options.output:
        parser.error("--resume names the run's folder; --output cannot name another")
    if options.resume and not (options.resume / "checkpoint.pt").is_file():
        parser.error(f"--resume {options.resume}: there is no checkpoint.pt in it")
    for name, folder in (("--output", options.output), ("--data", options.data)):
        if folder and folder.exists() and not folder.is_dir():
            parser.error(f"{name} {folder}: this is a file, not a folder")
    if options.data and not options.data.exists():
        parser.error(f"--data {options.data}: there is no such folder")
    if options.output and (options.output / "checkpoint.pt").exists():
        parser.error(f"--output {options.output} holds a run already: --resume it, or choose another folder")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        parser.error(f"--seed must be 0 or more, not {options.seed}")
    try:
        options.recipe = replace(defaults, **given(options))
        if options.device != "auto":  # "auto" always finds one, so torch can wait
            from helpers import pick_device

            pick_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    return options


def given(options: argparse.Namespace) -> dict:
    """The recipe's values that the command line sets."""
    values = {name: getattr(options, name) for name in ("epochs", "batch_size", "learning_rate")}
    if options.smoke and values["epochs"] is None:
        values["epochs"] = 1
    return {name: value for name, value in values.items() if value is not None}


def main() -> int:
    options = parse_arguments()

    import helpers

    recipe, seed = options.recipe, options.seed or 0
    try:
        if options.resume:
            stored = helpers.load_checkpoint(options.resume / "checkpoint.pt")
            # What is not given on the command line is as it was; what is given and differs is refused by `fit`.
            recipe = replace(Recipe(**stored["recipe"]), **given(options))
            seed = stored["seed"] if options.seed is None else options.seed
            output = options.resume
        else:
            output = options.output or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-seed{seed}"
            output.mkdir(parents=True, exist_ok=True)
        data = helpers.load_sample() if options.smoke else helpers.load_mnist(options.data)
        return run(data, recipe, seed, options.device, output, bool(options.resume))
    except (helpers.DataError, helpers.CheckpointError, helpers.DivergenceError, OSError) as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 1


def run(data, recipe: Recipe, seed: int, device: str, output: Path, resume: bool) -> int:
    """Train, print and save; return the exit code."""
    import helpers
    from files import atomic_path
    from report import describe_result

    model = helpers.build(seed=seed)
    print(helpers.summary(model))
    print(data)
    print(f"Device {helpers.pick_device(device)}, seed {seed}, {recipe}\n")

    history = helpers.fit(model, data, recipe, seed, device, output / "checkpoint.pt", resume)
    if not history:
        return INTERRUPTED

    last = history[-1]
    result = describe_result(last["test_correct"], data)
    record = {
        "result": result,
        "data": data.source,
        "split": data.split,
        "seed": seed,
        "recipe": recipe.as_dict(),
        "history": history,
    }
    with atomic_path(output / "history.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1))
    helpers.save_weights(model, output / "weights.safetensors", {"data": data.source, "result": result})
    helpers.save_figure(helpers.plot_curves(history, title=result), output / "curves.png")

    complete = len(history) == recipe.epochs
    print(f"\n{result}" if complete else f"\nAfter {len(history)} of {recipe.epochs} epochs: {result}")
    print(f"Saved in {output}: weights.safetensors, history.json, curves.png, checkpoint.pt")
    if not complete:
        print(f"To go on: python main.py --resume {output}")
    return 0 if complete else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
