"""Measure how much `--track` slows a run down, each tracker in a separate process.

    python benchmarks/trackers.py

The preset `tiny` trains with a line in metrics.jsonl for every 10 steps. Only every second line is
sent to the tracker. The script compares the time for the 10 steps after a line that was sent with
the mean time for the 10 steps before and after them. It prints the median of these ratios, with its
standard error. wandb runs without a network (WANDB_MODE=offline).
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles

from nanogpt.interop.trackers import TRACKERS, TrackerName, Trackers
from nanogpt.runs.checkpoint import Best
from nanogpt.runs.journal import Record
from nanogpt.runs.presets import get_preset
from nanogpt.runs.reporter import Reporter
from nanogpt.train import train

STEPS = 10
"""Optimizer steps between two lines."""


class EverySecondLine(Trackers):
    """Sends every second line to a tracker, and notes the time of each line."""

    def __init__(self, name: TrackerName) -> None:
        super().__init__([name], Reporter())
        self.times: list[float] = []

    def recorded(self, record: Record, best: Best | None) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) % 2:
            super().recorded(record, best)


def measure(name: TrackerName, lines: int, out: Path) -> tuple[float, float]:
    """Return the median ratio of the times with and without a tracker, and its standard error."""
    config = get_preset("tiny").config
    steps = STEPS * lines
    settings = replace(
        config.train, steps=steps, eval_every=steps, eval_first=False, log_every=STEPS
    )
    with EverySecondLine(name) as reporter:
        train(replace(config, out=out, train=settings), reporter)
    times = reporter.times[:-1]  # without the evaluation at the end
    spans = [later - earlier for earlier, later in pairwise(times)]
    first = 10  # the tracker is open by then; the spans 0, 2, 4, ... follow a line that was sent
    ratios = [2 * spans[i] / (spans[i - 1] + spans[i + 1]) for i in range(first, len(spans) - 1, 2)]
    low, _, high = quantiles(ratios, n=4)
    error = 1.253 * (high - low) / 1.349 / len(ratios) ** 0.5  # of a median, for normal noise
    return median(ratios), error


def main() -> None:
    """Measure each tracker in a separate process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=300, help="lines of metrics.jsonl per run")
    parser.add_argument("--only", choices=TRACKERS, help="measure this tracker, in this process")
    args = parser.parse_args()
    if not args.only:
        for name in TRACKERS:
            command = [sys.executable, __file__, "--only", name, "--lines", str(args.lines)]
            subprocess.run(command, check=True)
        return
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {"WANDB_MODE": "offline", "TRACKIO_DIR": directory}
        ratio, error = measure(args.only, args.lines, Path(directory, "run"))
    print(f"{args.only:12}  {ratio:.4f} ± {error:.4f} times the time without it", flush=True)


if __name__ == "__main__":
    main()
