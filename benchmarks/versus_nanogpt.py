"""nanoGPT and nanogpt on Tiny Shakespeare, one after the other on this machine.

    python benchmarks/versus_nanogpt.py --nanogpt CHECKOUT       # everything that this machine can
    python benchmarks/versus_nanogpt.py --table                  # anew from benchmarks/results

CHECKOUT is a clone of github.com/karpathy/nanoGPT; it is copied, not changed. Its train.py runs as
it is, in a process of its own (train_nanogpt.py), except that it saves the weights after every
evaluation. When it has ended, all of them are measured by our protocol: the whole validation split,
windows that do not overlap, float32. Ours is `nanogpt train PRESET`, a process of its own too, each
time with another seed. Seconds count from process start, evaluations included; memory is the peak
of the process in training. The best weights of each are measured once more, on a text that nothing
was chosen by (common.py). The programs take turns; the table has medians. On two CPU cores three
rounds take about 10 minutes, on one large GPU a round takes about 4.

Written to benchmarks/results: versus_nanogpt_NAME.json, all that was measured; .png, loss over wall
time. NAME is cpu or cuda; --name gives those of another machine another one. The tables of all
results there are come into the README.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from common import RESULTS, nanogpt_train, save, timed

from nanogpt.system.devices import describe_device
from nanogpt.text import corpora

Result = dict[str, Any]


@dataclass(frozen=True)
class Contest:
    """Programs that are after the same loss."""

    target: float
    """Validation loss, in nats per character."""
    flags: str
    """Of nanoGPT's train.py, after config/train_shakespeare_char.py."""
    presets: tuple[str, ...]
    """Ours."""


CONTESTS = {
    # nanoGPT's README, "I only have a macbook"; its compile is off there too.
    "cpu": Contest(
        1.88,
        "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
        "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
        "--lr_decay_iters=2000 --dropout=0.0",
        ("tiny", "tiny-fast"),
    ),
    # Of its 5,000 steps those until it has overfitted; its schedule is that for 5,000.
    "cuda": Contest(1.4697, "--max_iters=2000", ("baby", "baby-fast", "best")),
}


def theirs(checkout: Path, flags: str) -> Result:
    """Train with nanoGPT in a copy of its checkout."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "nanoGPT"
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git"))
        folder = copy / "data" / "shakespeare_char"
        (folder / "input.txt").write_text(
            corpora.load_corpus("tinyshakespeare").text(), encoding="utf-8"
        )
        subprocess.run([sys.executable, "prepare.py"], cwd=folder, check=True, stdout=sys.stderr)
        child = Path(__file__).with_name("train_nanogpt.py")
        command = [sys.executable, str(child), str(copy), str(time.time()), f"--flags={flags}"]
        found: Result = json.loads(timed(command)[0].splitlines()[-1])
    return found


def seconds_to(target: float, result: Result) -> float:
    """Until the loss was at most target; until the best where it never was."""
    for evaluation in result["evaluations"]:
        if evaluation["val_loss"] <= target:
            return float(evaluation["seconds"])
    return float(result["best"]["seconds"])


def table(record: Result) -> str:
    """What was measured, in Markdown: medians."""
    target, runs = record["target"], record["runs"]
    repeats = len(runs["nanoGPT"])
    first = median(seconds_to(target, result) for result in runs["nanoGPT"])
    heads = [
        f"{record['device']}, torch {record['torch']}",
        "precision",
        "best validation loss",
        "at step",
        "last",
        "on another text",
        f"seconds to {target}, from process start",
        "times faster",
        "seconds, whole process",
        "peak memory",
    ]
    rows = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name, results in runs.items():
        best = {key: median(r["best"][key] for r in results) for key in ("val_loss", "step")}
        seconds = median(seconds_to(target, result) for result in results)
        reached = best["val_loss"] <= target
        unseen = [r["unseen"] for r in results if "unseen" in r]
        rows.append(
            f"| {name} | {results[0].get('precision', '')} | {best['val_loss']:.4f} "
            f"| {best['step']:,.0f} "
            f"| {median(r['evaluations'][-1]['val_loss'] for r in results):.4f} "
            f"| {f'{median(unseen):.4f}' if unseen else ''} "
            f"| {seconds:.1f}{'' if reached else ' (its best)'} "
            f"| {first / seconds:.1f} "
            f"| {median(r['seconds'] for r in results):.1f} "
            f"| {median(r['megabytes'] for r in results):,.0f} MB |"
        )
    return "\n".join([*rows, "", f"Medians of {repeats}." if repeats > 1 else "One run each.", ""])


def draw(record: Result, file: Path) -> None:
    """Loss over wall time, a curve for every run."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = (("0.45", "s"), ("tab:blue", "o"), ("tab:orange", "D"), ("tab:green", "^"))
    for (name, results), (color, marker) in zip(record["runs"].items(), styles, strict=False):
        for number, result in enumerate(results):
            points = [(e["seconds"], e["val_loss"]) for e in result["evaluations"]]
            axes.plot(
                *zip(*points, strict=True),
                color=color,
                marker=marker,
                markersize=4,
                linewidth=1,
                label=name if number == 0 else None,
            )
    axes.axhline(record["target"], color="0.6", linestyle="--", linewidth=1)
    axes.annotate(
        f"{record['target']}",
        (1, record["target"]),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color="0.4",
    )
    lowest = min(r["best"]["val_loss"] for results in record["runs"].values() for r in results)
    axes.set_ylim(lowest - 0.05, lowest + 1)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds from process start, evaluations included")
    axes.set_ylabel("validation loss, nats per character")
    axes.set_title(f"Tiny Shakespeare on {record['device']}")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file)


def show() -> None:
    """Write and print the tables of all results there are, and draw their plots."""
    tables = []
    for file in sorted(RESULTS.glob("versus_nanogpt_*.json")):
        record = json.loads(file.read_text("utf-8"))
        draw(record, file.with_suffix(".png"))
        tables.append(table(record))
    print("\n".join(tables))


def main() -> None:
    """Let the programs take turns, and keep what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--name", help="of the results; cpu or cuda unless given")
    parser.add_argument("--presets", nargs="+", help="of ours; else all that are after the loss")
    parser.add_argument("--keep", type=Path, help="move our runs to this directory")
    parser.add_argument(
        "--table", action="store_true", help="only draw the plots and print the tables"
    )
    args = parser.parse_args()
    if args.table:
        show()
        return
    if args.nanogpt is None:
        parser.error("--nanogpt: name a clone of github.com/karpathy/nanoGPT")

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    contest = CONTESTS[kind]
    file = RESULTS / f"versus_nanogpt_{args.name or kind}.json"
    runs: dict[str, list[Result]] = {"nanoGPT": []}
    record = {
        "device": describe_device(torch.device(kind)),
        "torch": torch.__version__,
        "target": contest.target,
        "runs": runs,
    }
    for number in range(args.repeats):
        runs["nanoGPT"].append(theirs(args.nanogpt, contest.flags))
        for preset in args.presets or contest.presets:
            keep = args.keep / f"{preset}-{number + 1}" if args.keep else None
            flags = ["--seed", str(1337 + number)]  # 1337 is nanoGPT's
            found = nanogpt_train(preset, flags, keep)
            runs.setdefault(f"nanogpt {preset}", []).append(found)
        save(file, record)
    show()


if __name__ == "__main__":
    main()
