"""The parts of the benchmark: each function measures one and returns a dict that can be written as JSON.

`repeats` is the number of timings; `smoke` uses little data and the smallest numbers, to see that everything works.
What is compared is measured interleaved, in one process; a timing is the median and the range. Time to accuracy is
measured as in cifar10-airbench (github.com/KellerJordan/cifar10-airbench): a fixed schedule, the last epoch, the mean
over seeds, after a warm-up on random labels that is not counted.
"""

import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch

from helpers import Net, build, fit
from s5.analysis.inspection import count_macs
from s5.analysis.statistics import p_mean_above
from s5.benchmarks import baseline
from s5.benchmarks.timing import CPU, load, measure_interleaved, seconds_of, summarize
from s5.experiments.claims import CLAIMS, find_variant
from s5.training.augmentation import normalize
from s5.training.command_line import plural
from s5.training.device import eval_batch_size, pick_precision, use_threads
from s5.training.mnist import MnistData
from s5.training.recipe import Recipe

IMAGES = 60_000  # in an epoch
PART_OF_AN_EPOCH = 12_000  # images: enough for a steady rate
SMALL_NETWORKS = tuple(name for name in CLAIMS if name != "s5")


def warm_up(model: torch.nn.Module, data: MnistData, recipe: Recipe, **options) -> None:
    """Train three batches with random labels, so that compiling, or recording a CUDA graph, is done."""
    few = data.subset(3 * recipe.batch_size, 100)
    random_labels = torch.randint(10, few.train_labels.shape, generator=torch.Generator().manual_seed(0))
    few = replace(few, train_labels=random_labels)
    fit(model, few, replace(recipe, epochs=1), progress=False, **options)


def timed_epoch(name: str, data: MnistData, **options) -> Callable[[], float]:
    """A function that trains one more epoch on the CPU and returns the seconds that 60,000 images would take."""
    variant = find_variant(name)
    model, recipe = build(variant.build, 0), variant.recipe.changed(epochs=1)  # with augmentation, as most epochs are
    warm_up(model, data, recipe, device="cpu", **options)
    few_evaluated = data.subset(len(data.train_images), 100)
    run = partial(fit, model, few_evaluated, recipe, device="cpu", progress=False, **options)
    return lambda: run()[0]["seconds"] * IMAGES / len(data.train_images)


# --- Parts ------------------------------------------------------------------------------------------------------------


def epoch(repeats: int, smoke: bool) -> dict:
    """One epoch of `Net` on the CPU: this project, the baseline, and a lower bound.

    The lower bound is the time that large float32 matrix products take for as many floating-point operations.
    """
    data, threads = load(smoke), torch.get_num_threads()
    size = 2048
    left, right = torch.randn(size, size), torch.randn(size, size)
    flop = 2 * 3 * count_macs(Net()) * len(data.train_images)  # the backward pass costs two forward passes

    def lower_bound() -> float:
        return seconds_of(lambda: [left @ right for _ in range(10)]) / (10 * 2 * size**3) * flop

    def baseline_epoch(count: int) -> Callable[[], float]:
        epochs = baseline.train(data, repeats)

        def run() -> float:
            with use_threads(count):
                return next(epochs)

        return run

    lower_bound()  # warm-up
    functions = {"lower bound": lower_bound}
    for precision in dict.fromkeys(("float32", pick_precision("auto", CPU))):  # bfloat16 only if native
        functions[precision] = timed_epoch("s5", data, precision=precision)
    functions["float32, not compiled"] = timed_epoch("s5", data, precision="float32", compile=False)
    for count in sorted({1, threads}):  # its two workers need the cores as well, so one thread may be faster
        functions[f"baseline, {plural(count, 'thread')}"] = baseline_epoch(count)
    return {"seconds": measure_interleaved(functions, repeats), "GFLOP per epoch": round(flop / 1e9, 1)}


def small(repeats: int, smoke: bool) -> dict:
    """One epoch of each claimed small network, with one thread, as in a sweep; and without compiling, in float32.

    The networks are recorded as lines: a later claim may be another network.
    """
    data, functions = load(smoke), {}
    data = data.subset(min(PART_OF_AN_EPOCH, len(data.train_images)), 100)
    with use_threads(1):
        for name in SMALL_NETWORKS:
            functions[name] = timed_epoch(name, data)
            functions[f"{name}, not compiled"] = timed_epoch(name, data, precision="float32", compile=False)
        return {"networks": _lines(SMALL_NETWORKS), "seconds": measure_interleaved(functions, repeats)}


def time_to_accuracy(name: str, target: float, seeds: list[int], device: str = "cpu", smoke: bool = False) -> dict:
    """Seconds and accuracy of a variant's whole training, each seed in a new process.

    Measured from the start of the process, and again without imports, loading and warm-up. `target` is the mean test
    accuracy in percent that the variant was made for.
    """
    recipe = find_variant(name).recipe
    recipe = recipe.changed(epochs=1) if smoke else recipe
    accuracies, training, from_start = [], [], []
    for seed in seeds:
        started = time.time()
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            ready, done, accuracy = pool.submit(_train_once, name, recipe, seed, device, smoke).result()
        accuracies.append(accuracy)
        training.append(done - ready)
        from_start.append(done - started)
        took = f"{training[-1]:.1f} s, from process start {from_start[-1]:.1f} s"
        print(f"    seed {seed}: {accuracy:.2f}% in {took}", flush=True)
    return {
        "variant": name,
        "recipe": recipe.as_dict(),
        "target": target,
        "seeds": seeds,
        "accuracies": accuracies,
        "mean": round(statistics.mean(accuracies), 4),
        "std": round(statistics.stdev(accuracies), 4),
        "minimum": min(accuracies),
        "p of a mean above the target": p_mean_above(accuracies, target),
        "training seconds": summarize(training),
        "seconds from process start": summarize(from_start),
    }


def _train_once(name: str, recipe: Recipe, seed: int, device: str, smoke: bool) -> tuple[float, float, float]:
    """In a new process: load, warm up, train, evaluate once. Times before and after training, and the accuracy."""
    data, architecture = load(smoke), find_variant(name).build
    warm_up(build(architecture, seed), data, recipe, device=device)
    ready = time.time()
    options = {"device": device, "progress": False, "eval_every": recipe.epochs}
    history = fit(build(architecture, seed), data, recipe, seed=seed, **options)
    return ready, time.time(), history[-1]["eval_accuracy"]


def inference(repeats: int, smoke: bool) -> dict:
    """Inference of all test images in batches, and of one image: eager, compiled, and by onnxruntime if installed."""
    model = build(Net, 0).eval()
    images = normalize(load(smoke).eval_images)
    networks = {"eager": model, "compiled": torch.compile(model), **_onnx_session(model)}

    def run(network: Callable, batches: tuple[torch.Tensor, ...], rounds: int) -> float:
        return seconds_of(lambda: [network(batch) for _ in range(rounds) for batch in batches]) / rounds

    results = {}
    with torch.inference_mode():
        for name, batches, rounds in (
            ("all test images", images.split(eval_batch_size(images.device)), 1),
            ("one image", images[:1].split(1), 100),
        ):
            functions = {key: partial(run, network, batches, rounds) for key, network in networks.items()}
            for function in functions.values():
                function()  # compile and warm up
            results[name] = measure_interleaved(functions, repeats)
    return results


def _onnx_session(model: torch.nn.Module) -> dict[str, Callable]:
    """The model as a function that onnxruntime computes, {"onnxruntime": function}; empty if it is not installed."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  required by torch.onnx.export
    except ImportError as error:
        print(f"    onnxruntime is not measured: {error}")
        return {}
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 1, 28, 28),),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return {"onnxruntime": lambda batch: session.run(None, {name: batch.numpy()})}


def gpu(repeats: int, smoke: bool) -> dict:
    """An epoch of each claimed network on a GPU, with and without a CUDA graph; empty without CUDA."""
    if not torch.cuda.is_available():
        print("    not measured: torch finds no CUDA device")
        return {}
    data, functions = load(smoke).to(torch.device("cuda")), {}

    def one(name: str, compile: bool) -> float:
        variant = find_variant(name)
        recipe = variant.recipe.changed(epochs=1)
        return fit(build(variant.build, 0), data, recipe, device="cuda", compile=compile, progress=False)[0]["seconds"]

    for name in CLAIMS:
        functions[name] = partial(one, name, True)
        functions[f"{name}, no CUDA graph"] = partial(one, name, False)
    for function in functions.values():
        function()  # warm up
    return {"networks": _lines(CLAIMS), "seconds": measure_interleaved(functions, repeats)}


def _lines(names: Iterable[str]) -> dict[str, str]:
    return {name: find_variant(name).network_name for name in names}
