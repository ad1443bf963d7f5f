"""Variants of a preset, each with the same seeds: what a change is worth, and what is chance.

    python benchmarks/variants.py tiny-fast -- "" "--optim.momentum 0.9" "--model.n-head 4"
    python benchmarks/variants.py baby --seeds 2 --jobs 4 -- "" "--model.dropout 0.3"

Every argument after the preset is a variant: flags of `nanogpt train`, none for the preset as it
is. Each run is a process of its own; with --jobs, so many run at a time, and only the losses count.
Prints a table in Markdown: the best and the last validation loss, mean over the seeds, the spread
of the best from lowest to highest, and the median of the seconds of the whole process.
"""

import argparse
import shlex
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median

from common import nanogpt_train

from nanogpt.runs.presets import PRESETS


def main() -> None:
    """Run every variant with every seed; a line as soon as a variant is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("variants", nargs="+", metavar="FLAGS")
    parser.add_argument("--seeds", type=int, default=3, help="1 up to this")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    args = parser.parse_args()
    print(f"| `{args.preset}` | best | spread | last | seconds |\n| --- | --- | --- | --- | --- |")
    with ThreadPoolExecutor(args.jobs) as pool:
        started = [
            [
                pool.submit(nanogpt_train, args.preset, ["--seed", str(seed), *shlex.split(flags)])
                for seed in range(1, args.seeds + 1)
            ]
            for flags in args.variants
        ]
        for flags, runs in zip(args.variants, started, strict=True):
            results = [run.result() for run in runs]
            best = [result["best"]["val_loss"] for result in results]
            last = [result["evaluations"][-1]["val_loss"] for result in results]
            print(
                f"| {flags or 'as it is'} | {mean(best):.4f} | {min(best):.4f} to {max(best):.4f} "
                f"| {mean(last):.4f} | {median(r['seconds'] for r in results):.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
