"""Train variants of a preset, all with the same seeds, and print a table of their losses.

    python benchmarks/variants.py tiny-fast -- "" "--optim.momentum 0.9" "--model.n-head 4"
    python benchmarks/variants.py baby --seeds 2 --jobs 4 -- "" "--model.dropout 0.3"

Every argument after `--` is a variant: options of `nanogpt train`, or "" for the preset itself.
Each run is a separate process. With --jobs N, N runs share the machine, so the measured times are
longer. A row of the table has the lowest and the last validation loss (mean over the seeds),
the range of the lowest loss, and the median seconds of the whole process.
"""

import argparse
import shlex
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median

from common import train_preset

from nanogpt.runs.presets import PRESETS


def main() -> None:
    """Train every variant with every seed; print a row when a variant is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("variants", nargs="+", metavar="OPTIONS")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; seeds are 1, 2, ...")
    parser.add_argument("--jobs", type=int, default=1, help="number of runs at the same time")
    args = parser.parse_args()
    print(f"| `{args.preset}` | lowest | range | last | seconds |\n| --- | --- | --- | --- | --- |")
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [
            [
                pool.submit(train_preset, args.preset, ["--seed", str(seed), *shlex.split(options)])
                for seed in range(1, args.seeds + 1)
            ]
            for options in args.variants
        ]
        for options, runs in zip(args.variants, jobs, strict=True):
            results = [run.result() for run in runs]
            lowest = [result["best"]["val_loss"] for result in results]
            last = [result["evaluations"][-1]["val_loss"] for result in results]
            print(
                f"| {options or 'unchanged'} | {mean(lowest):.4f} "
                f"| {min(lowest):.4f} to {max(lowest):.4f} | {mean(last):.4f} "
                f"| {median(result['seconds'] for result in results):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
