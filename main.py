"""Train the final model (18,214 parameters) on MNIST and save the results.

python main.py                      20 epochs, results in a new folder under runs/
python main.py --fast               99.4% in two epochs, by another network and recipe
python main.py --smoke              two epochs on a small sample, to see that everything works
python main.py --resume runs/NAME   continue an interrupted run

For distillation see python -m s5 sweep --teacher.
"""

import argparse
import contextlib
import json
import os
import shlex
import sys
from datetime import datetime
from pathlib import Path

from s5.training.command_line import (
    INTERRUPTED,
    PRECISIONS,
    Parser,
    add_recipe_options,
    check_threads,
    plural,
    recipe_changes,
    run_command,
)
from s5.training.files import RUNS, check_folder, hold_folder, write_file
from s5.training.recipe import Recipe, check_seed

# Torch takes seconds to load, so what needs it is imported after the options are parsed.

CHECKPOINT, RESULTS = "checkpoint.pt", ("weights.safetensors", "history.json", "curves.png")
FAST = "to_99_4"  # the variant of --fast
DISTILLATION = ("teacher", "teachers", "teacher_weight", "temperature")  # python -m s5 sweep trains teachers


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, with the `recipe` that it asks for; exits with code 2 if it is wrong."""
    defaults = Recipe()
    parser = Parser("main.py", __doc__, usage="python main.py [options]")
    group = parser.add_argument_group("run")
    group.add_argument("--seed", type=int, metavar="N", help="of weights, order and augmentation (default 0)")
    group.add_argument("--fast", action="store_true", help="two epochs of the network that learns fastest, not of Net")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or mps (default auto)")
    group.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: one per idle core)")
    about = "default auto: bfloat16 if the device multiplies it natively"
    group.add_argument("--precision", choices=PRECISIONS, default="auto", help=about)
    group = parser.add_argument_group("data").add_mutually_exclusive_group()
    group.add_argument(
        "--data", metavar="NAME", help="mnist (default), fashion, kmnist, or a folder with files as MNIST's"
    )
    group.add_argument("--smoke", action="store_true", help="two epochs on a small sample; needs no download")
    group = parser.add_argument_group("results").add_mutually_exclusive_group()
    group.add_argument("--output", type=Path, metavar="DIR", help="default: a new folder under runs/")
    group.add_argument("--resume", type=Path, metavar="DIR", help="continue the run in this folder")
    add_recipe_options(parser, "recipe", defaults, skip=DISTILLATION)
    options = parser.parse_args(arguments)

    if options.fast:
        from s5.experiments.claims import KNOWN

        defaults = KNOWN[FAST].recipe
    try:
        check_seed(options.seed or 0)
        check_threads(options.threads)
        options.recipe = (defaults.for_smoke() if options.smoke else defaults).changed(**recipe_changes(options))
    except ValueError as error:
        parser.error(str(error))
    name = f"{datetime.now():%Y%m%d-%H%M%S}-seed{options.seed or 0}"
    options.source = "sample" if options.smoke else options.data or "mnist"
    options.output = options.resume or options.output or Path(os.path.relpath(RUNS / name))
    return options


def main(arguments: list[str] | None = None) -> int:
    """The whole command; returns its exit code: 0, 1 for a failure, 130 after Ctrl-C."""
    options = parse_arguments(arguments)

    from s5.training.mnist import load_data

    made = [folder for folder in (options.output, *options.output.parents) if not folder.exists()]
    try:
        check_folder(options.output)  # before hours of training
        with hold_folder(options.output):
            if options.resume:
                restore_options(options)
            elif (options.output / CHECKPOINT).exists():
                raise OSError(f"{options.output} already holds a run: --resume it, or choose another folder")
            run(options, load_data(options.source, allow_sample=not options.data))
            return 0
    except (ValueError, RuntimeError, OSError) as error:  # among them DataError, CheckpointError, DivergenceError
        print(f"main.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = ["--resume", str(options.output), *(["--data", options.data] if options.data else [])]
        again += ["--fast"] if options.fast else []
        is_saved = (options.output / CHECKPOINT).exists()
        to_continue = f"To continue: python main.py {shlex.join(again)}"
        print(to_continue if is_saved else "Interrupted in the first epoch: nothing is saved.")
        return INTERRUPTED
    finally:
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()  # if nothing was saved in it


def restore_options(options: argparse.Namespace) -> None:
    """Take from the checkpoint what the command line does not set; `fit` refuses what differs from it."""
    from s5.training.checkpoint import load_checkpoint
    from s5.training.mnist import NAMES

    stored = load_checkpoint(options.resume / CHECKPOINT)
    begun = stored["run"]
    options.recipe = Recipe(**stored["recipe"]).changed(**recipe_changes(options))
    options.device = begun["device"] if options.device == "auto" else options.device
    options.precision = begun["precision"] if options.precision == "auto" else options.precision
    options.seed = begun["seed"] if options.seed is None else options.seed
    options.threads = options.threads or begun["threads"]
    options.source = options.data or begun["source"]
    if options.source not in NAMES and not options.data:
        raise ValueError(f"this run was begun with {options.source}: name the folder of these data, too, with --data")
    if len(stored["history"]) == options.recipe.epochs:
        print("This run is complete: nothing is left to train, and its results are written again.")


def run(options: argparse.Namespace, data) -> None:
    """Train, print and save. Raises KeyboardInterrupt if Ctrl-C ended the training early."""
    from helpers import build, fit
    from s5.analysis import inspection, plots
    from s5.analysis.statistics import CLAIMED_ACCURACY, describe_result
    from s5.analysis.style import save_figure
    from s5.experiments.claims import KNOWN
    from s5.training.checkpoint import save_weights
    from s5.training.device import pick_device, pick_precision, pick_threads
    from s5.training.provenance import provenance

    recipe, seed, output = options.recipe, options.seed or 0, options.output
    model = build(KNOWN[FAST if options.fast else "s5"].build, seed)
    print(inspection.summary(model), data, sep="\n")
    device = pick_device(options.device)
    precision = pick_precision(options.precision, device)
    reason = "as the run was begun" if options.resume else "as asked for"
    threads, reason = (options.threads, reason) if options.threads else pick_threads()
    print(f"Device {device}, {precision}, {plural(threads, 'thread')} ({reason}), seed {seed}, {recipe}\n")

    where = {"device": device, "precision": precision, "threads": threads}
    origin = provenance(**where)  # before the training, during which the code may change
    history = fit(model, data, recipe, seed=seed, checkpoint=output / CHECKPOINT, resume=bool(options.resume), **where)
    if not history:
        raise KeyboardInterrupt

    result = describe_result(history[-1]["eval_correct"], data)
    record = {"result": result, "data": data.source, "split": data.split, "seed": seed, "threads": threads, **origin}
    record |= {"recipe": recipe.as_dict(), "history": history}
    save_weights(model, output / "weights.safetensors", {"data": data.source, "result": result})
    write_file(output / "history.json", json.dumps(record, indent=1) + "\n")
    threshold = CLAIMED_ACCURACY if data.source in ("mnist", "sample") else None
    save_figure(plots.plot_curves(history, result, threshold), output / "curves.png")

    complete = len(history) == recipe.epochs
    seconds = f"{sum(epoch['seconds'] for epoch in history):.1f} s of training and evaluation"
    print(f"\n{result}, {seconds}" if complete else f"\nAfter {len(history)} of {recipe.epochs} epochs: {result}")
    print(f"Saved in {output}: {', '.join(RESULTS)}, {CHECKPOINT}")
    if not complete:
        raise KeyboardInterrupt


if __name__ == "__main__":
    run_command(main)
