"""What to expect of each preset on this machine: loss and time of several seeds, and its text.

    python benchmarks/presets.py tiny tiny-fast     # then: python benchmarks/write_numbers.py
    python benchmarks/presets.py                    # only write the table, from benchmarks/results

Each run is `nanogpt train PRESET --seed N`, a process of its own; seeds count from 1. The table has
the mean of the best validation losses, their spread from lowest to highest, the mean of the last
ones and of those on a text that nothing was chosen by (common.py), and the median of the seconds of
the whole process. With --keep, the runs are moved to a directory.
"""

import argparse
import json
import platform
import re
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from common import RESULTS, nanogpt_train, save

from nanogpt.runs.presets import PRESETS


def hardware() -> str:
    """This machine in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    return f"{torch.get_num_threads()} cores, {found[1] if found else platform.processor()}"


def rows() -> str:
    """The table of all results there are, and what each preset wrote."""
    lines = [
        "| preset | hardware | parameters | steps | seconds | validation loss | spread | last "
        "| another text |",
        f"|{' --- |' * 9}",
    ]
    samples = []
    for name in PRESETS:
        for file in sorted(RESULTS.glob(f"preset_{name}_*.json")):
            record = json.loads(file.read_text("utf-8"))
            runs: list[dict[str, Any]] = record["runs"]
            losses = [run["best"]["val_loss"] for run in runs]
            precision = runs[0]["precision"]
            lines.append(
                f"| `{name}` | {record['hardware']}, {precision} | {runs[0]['parameters']:,} "
                f"| {record['steps']:,} | {median(run['seconds'] for run in runs):.0f} "
                f"| {mean(losses):.4f} | {min(losses):.4f} to {max(losses):.4f} "
                f"| {mean(run['evaluations'][-1]['val_loss'] for run in runs):.4f} "
                f"| {mean(run['unseen'] for run in runs):.4f} |"
            )
            written = "\n".join(runs[0]["sample"].strip().splitlines()[:6])
            samples.append(f"A sample of `{name}`:\n\n```\n{written}\n```\n")
    return "\n".join([*lines, "", *samples])


def main() -> None:
    """Run presets and save their results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("presets", nargs="*", metavar="PRESET")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="move the runs to this directory")
    args = parser.parse_args()
    if unknown := set(args.presets) - PRESETS.keys():
        parser.error(f"there is no preset {min(unknown)}: use {', '.join(PRESETS)}")
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    for name in args.presets:
        runs = [
            nanogpt_train(name, ["--seed", str(n)], args.keep and args.keep / f"{name}-{n}")
            for n in range(1, args.seeds + 1)
        ]
        steps = PRESETS[name].config.train.steps
        record = {"preset": name, "hardware": hardware(), "steps": steps, "runs": runs}
        save(RESULTS / f"preset_{name}_{kind}.json", record)


if __name__ == "__main__":
    main()
