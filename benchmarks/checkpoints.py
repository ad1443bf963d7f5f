"""What safety costs: the pause of a checkpoint, and the same bits from the same run.

    python benchmarks/checkpoints.py tiny --device cpu
    python benchmarks/checkpoints.py baby --device cuda

The pause is the time in which training waits for a checkpoint: looking at the weights, copying
them and the optimizer, and whatever of the writing is not done beside it. Its share is of the whole
time, evaluations included, at the preset's own interval. Determinism is compared by the tokens a
second between two lines of metrics.jsonl without an evaluation, runs with and without alternating.
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

from nanogpt import train as loop
from nanogpt.runs.background import BackgroundWriter
from nanogpt.runs.finite import FiniteCheck
from nanogpt.runs.presets import PRESETS
from nanogpt.system.devices import describe_device, pick_device

T = TypeVar("T")


def pause(preset: str, device: str, steps: int) -> dict[str, Any]:
    """Train once, with a clock around everything that saving does in the training's thread."""
    spent: list[float] = []

    def clocked(function: Callable[..., T]) -> Callable[..., T]:
        def call(*args: Any, **options: Any) -> T:
            began = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                spent.append(time.perf_counter() - began)

        return call

    loop.snapshot = clocked(loop.snapshot)  # type: ignore[attr-defined]
    loop.contents = clocked(loop.contents)  # type: ignore[attr-defined]
    BackgroundWriter.submit = clocked(BackgroundWriter.submit)  # type: ignore[method-assign]
    BackgroundWriter.__exit__ = clocked(BackgroundWriter.__exit__)  # type: ignore[method-assign]
    FiniteCheck.check_model = clocked(FiniteCheck.check_model)  # type: ignore[method-assign]
    config = PRESETS[preset].config
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "run")
        settings = replace(config.train, steps=steps)
        result = loop.train(replace(config, device=device, out=out, train=settings))
        began = result.run.journal.records[0].seconds  # the first evaluation is done
        size = sum(file.stat().st_size for file in (out / "last").iterdir())
    checkpoints = 1 + steps // settings.eval_every
    return {
        "checkpoints": checkpoints,
        "megabytes of last": round(size / 1e6, 1),
        "seconds of training": result.last.seconds,
        "pause in ms": round(1000 * sum(spent) / checkpoints, 1),
        "of it once, at the end": round(1000 * spent[-1], 1),
        "share of training": round(sum(spent) / result.last.seconds, 4),
        "share without start and compilation": round(sum(spent) / (result.last.seconds - began), 4),
    }


def rate(preset: str, device: str, steps: int, *flags: str) -> float:
    """Tokens a second of a run in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "run")
        command = [sys.executable, "-m", "nanogpt", "train", preset, "--device", device]
        command += ["--out", str(out), "--train.steps", str(steps), *flags]
        subprocess.run(command, check=True, capture_output=True)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [
        (later["tokens"] - earlier["tokens"]) / (later["seconds"] - earlier["seconds"])
        for earlier, later in pairwise(lines)
        if "val_loss" not in earlier and "val_loss" not in later
    ]
    return float(statistics.median(rates))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=0, help="the preset's own, unless given")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    steps = args.steps or PRESETS[args.preset].config.train.steps
    device = describe_device(pick_device(args.device))
    found: dict[str, Any] = {"preset": args.preset, "device": device}
    found["checkpoint"] = pause(args.preset, args.device, steps)
    rates: dict[str, list[float]] = {"as it is": [], "deterministic": []}
    for _ in range(args.repeats):
        rates["as it is"].append(rate(args.preset, args.device, 200))
        rates["deterministic"].append(rate(args.preset, args.device, 200, "--deterministic"))
    found["tokens a second"] = {
        name: {"median": round(statistics.median(seen)), "all": [round(r) for r in seen]}
        for name, seen in rates.items()
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
