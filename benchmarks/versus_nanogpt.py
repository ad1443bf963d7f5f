"""Train models on Tiny Shakespeare with nanoGPT and nanogpt in turn, on this machine.

    python benchmarks/versus_nanogpt.py --nanogpt CHECKOUT       # train both
    python benchmarks/versus_nanogpt.py --plots                  # only draw the plots again

CHECKOUT is a clone of github.com/karpathy/nanoGPT. This script copies the clone. In a separate
process, train_nanogpt.py runs the unchanged train.py of the copy, and saves the weights after
every evaluation. After the training, these weights are evaluated in the same way as nanogpt's
weights: on the whole validation split, in non-overlapping windows, in float32. nanogpt runs as
`nanogpt train PRESET`, also in a separate process, with a different seed each time.

Times are in seconds from the start of the process, and include evaluations. Memory is the peak host
memory of the process, without GPU memory and without the evaluation of nanoGPT's weights after the
training. The best weights of each run are also evaluated on an unseen text: see load_unseen_text()
in common.py. In each of the --repeats rounds, the script trains one model with nanoGPT and one with
each preset of nanogpt. Three rounds take about 15 minutes on two CPU cores; one round takes about 4
minutes on a large GPU.

The results go to benchmarks/results: versus_nanogpt_NAME.json, and a plot of the loss over time.
NAME is the argument of --name, by default cpu or cuda. `python benchmarks/write_numbers.py` then
writes the tables into docs/results.md.
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
from typing import Any

import torch
from common import RESULTS, run_timed, save_result, train_preset
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tables import versus_table

from nanogpt.system.devices import describe_device
from nanogpt.text import corpora

Result = dict[str, Any]


@dataclass(frozen=True)
class Contest:
    """A target loss, and the programs whose time to this loss is measured."""

    target: float
    """Validation loss in nats per character."""
    flags: str
    """Arguments of nanoGPT's train.py after config/train_shakespeare_char.py."""
    presets: tuple[str, ...]


CONTESTS = {
    # These are the arguments in nanoGPT's README, section "I only have a macbook".
    "cpu": Contest(
        1.88,
        "--device=cpu --compile=False --eval_iters=20 --log_interval=1 --block_size=64 "
        "--batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 "
        "--lr_decay_iters=2000 --dropout=0.0",
        ("tiny", "tiny-fast"),
    ),
    # nanoGPT overfits after about 1,750 of its 5,000 steps, so training stops after 2,000 here.
    # Its learning-rate schedule still covers 5,000 steps.
    "cuda": Contest(1.4697, "--max_iters=2000", ("baby", "baby-fast", "best")),
}


def run_nanogpt(checkout: Path, flags: str) -> Result:
    """Train with a copy of nanoGPT; return the result that train_nanogpt.py prints."""
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
        result: Result = json.loads(run_timed(command)[0].splitlines()[-1])
    return result


def draw_plot(comparison: Result, file: Path) -> None:
    """Draw the loss of every run over time."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = (("0.45", "s"), ("tab:blue", "o"), ("tab:orange", "D"), ("tab:green", "^"))
    for (name, results), (color, marker) in zip(comparison["runs"].items(), styles, strict=False):
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
    axes.axhline(comparison["target"], color="0.6", linestyle="--", linewidth=1)
    axes.annotate(
        f"{comparison['target']}",
        (1, comparison["target"]),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color="0.4",
    )
    lowest = min(r["best"]["val_loss"] for results in comparison["runs"].values() for r in results)
    axes.set_ylim(lowest - 0.05, lowest + 1)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds from process start, evaluations included")
    axes.set_ylabel("validation loss, nats per character")
    axes.set_title(f"Tiny Shakespeare on {comparison['device']}")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(file)


def draw_plots() -> None:
    """Draw the plots of all comparisons again."""
    for file in sorted(RESULTS.glob("versus_nanogpt_*.json")):
        draw_plot(json.loads(file.read_text("utf-8")), file.with_suffix(".png"))


def main() -> None:
    """Train a model with each program in turn, save the results and draw the plots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each program")
    parser.add_argument("--name", help="name of the results; by default cpu or cuda")
    parser.add_argument("--presets", nargs="+", help="presets to train")
    parser.add_argument("--keep", type=Path, help="move the runs of nanogpt to this directory")
    parser.add_argument("--plots", action="store_true", help="only draw the plots again")
    args = parser.parse_args()
    if args.plots:
        draw_plots()
        return
    if args.nanogpt is None:
        parser.error("--nanogpt is missing: give a path to a clone of karpathy/nanoGPT")

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    contest = CONTESTS[kind]
    file = RESULTS / f"versus_nanogpt_{args.name or kind}.json"
    runs: dict[str, list[Result]] = {"nanoGPT": []}
    comparison = {
        "device": describe_device(torch.device(kind)),
        "torch": torch.__version__,
        "target": contest.target,
        "runs": runs,
    }
    for number in range(args.repeats):
        runs["nanoGPT"].append(run_nanogpt(args.nanogpt, contest.flags))
        for preset in args.presets or contest.presets:
            keep = args.keep / f"{preset}-{number + 1}" if args.keep else None
            flags = ["--seed", str(1337 + number)]  # 1337 is the seed of nanoGPT
            run = train_preset(preset, flags, keep)
            runs.setdefault(f"nanogpt {preset}", []).append(run)
        save_result(file, comparison)
    draw_plots()
    print(versus_table(comparison))


if __name__ == "__main__":
    main()
