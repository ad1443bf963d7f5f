"""Measure the cost of checkpoints and of --deterministic.

    python benchmarks/checkpoints.py tiny --device cpu
    python benchmarks/checkpoints.py baby --device cuda

A pause is the time that training waits for a checkpoint. During a pause, the training thread
checks the model, and copies the weights and the optimizer state. On a CPU, it also writes the
files; on a GPU, a background thread writes them. The result also lists the sum of all pauses, as
a share of the training time. Each evaluation saves a checkpoint; evaluations are as frequent as in
the preset.

The script also measures the tokens per second of training, alternately with and without
--deterministic. The time of evaluations is excluded.

The results go to benchmarks/results/checkpoints_DEVICE.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from common import RESULTS, save_result
from tables import checkpoints_table

from nanogpt.runs.background import BackgroundWriter
from nanogpt.runs.keeper import CheckpointKeeper
from nanogpt.runs.presets import PRESETS
from nanogpt.system.devices import describe_device, pick_device
from nanogpt.train import train

T = TypeVar("T")


def measure_pauses(preset: str, device: str, steps: int) -> dict[str, Any]:
    """Train once, and measure how long the training thread waits for checkpoints."""
    pauses: list[float] = []

    def time_calls(function: Callable[..., T]) -> Callable[..., T]:
        def call(*args: Any, **options: Any) -> T:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                pauses.append(time.perf_counter() - start)

        return call

    for owner, name in (
        (CheckpointKeeper, "save_last"),
        (CheckpointKeeper, "save_best"),
        (CheckpointKeeper, "describe_run"),
        (BackgroundWriter, "__exit__"),  # waits for the background thread at the end
    ):
        setattr(owner, name, time_calls(getattr(owner, name)))
    config = PRESETS[preset].config
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "run")
        settings = replace(config.train, steps=steps)
        result = train(replace(config, device=device, out=out, train=settings))
        first_evaluation = result.run.journal.records[0].seconds
        size = sum(file.stat().st_size for file in (out / "last").iterdir())
    checkpoints = 1 + steps // settings.eval_every
    after_start = result.last.seconds - first_evaluation
    return {
        "checkpoints": checkpoints,
        "megabytes of last": round(size / 1e6, 1),
        "seconds of training": result.last.seconds,
        "pause in ms": round(1000 * sum(pauses) / checkpoints, 1),
        "at the end": round(1000 * pauses[-1], 1),
        "share of training": round(sum(pauses) / result.last.seconds, 4),
        "share without start and compilation": round(sum(pauses) / after_start, 4),
    }


def measure_rate(preset: str, device: str, steps: int, *flags: str) -> float:
    """Train in a separate process, and return the median tokens per second."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "run")
        command = [sys.executable, "-m", "nanogpt", "train", preset, "--device", device]
        command += ["--out", str(out), "--train.steps", str(steps), *flags]
        subprocess.run(command, check=True, capture_output=True)
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [
        (later["tokens"] - earlier["tokens"]) / (later["seconds"] - earlier["seconds"])
        for earlier, later in pairwise(records)
        if "val_loss" not in earlier and "val_loss" not in later
    ]
    return float(statistics.median(rates))


def main() -> None:
    """Measure the pauses and the training speed, save the result and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="steps of the run that measures the pauses; default: the steps of the preset",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs with each setting")
    args = parser.parse_args()
    steps = args.steps or PRESETS[args.preset].config.train.steps
    device = pick_device(args.device)
    result: dict[str, Any] = {"preset": args.preset, "device": describe_device(device)}
    result["checkpoint"] = measure_pauses(args.preset, args.device, steps)
    rates: dict[str, list[float]] = {"default": [], "deterministic": []}
    for _ in range(args.repeats):
        rates["default"].append(measure_rate(args.preset, args.device, 200))
        rates["deterministic"].append(
            measure_rate(args.preset, args.device, 200, "--deterministic")
        )
    result["tokens a second"] = {
        name: {"median": round(statistics.median(runs)), "all": [round(rate) for rate in runs]}
        for name, runs in rates.items()
    }
    save_result(RESULTS / f"checkpoints_{device.type}.json", result)
    print(checkpoints_table([result]))


if __name__ == "__main__":
    main()
