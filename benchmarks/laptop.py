"""Train the preset `laptop` on this machine, and plot its loss over the steps beside counting.

    python benchmarks/laptop.py             # train and plot; takes four minutes or more
    python benchmarks/laptop.py --plot      # only draw the plot again

The run is `nanogpt train laptop` with 14 evaluations instead of one. The plot also shows the loss
of smoothed 7-grams, and the loss that the README of nanoGPT gives for three minutes on an A100 GPU.
The results go to benchmarks/results: laptop.json and laptop.png.
"""

import argparse
import json

from common import RESULTS, save_result, train_preset
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nanogpt.runs.presets import PRESETS
from nanogpt.text import corpora
from nanogpt.text.encoding import encode_corpus, get_tokenizer
from nanogpt.text.kneser_ney import KneserNey
from nanogpt.text.readers import no_progress

FILE = RESULTS / "laptop.json"
NANOGPT = 1.4697
"""Published by nanoGPT for an A100 GPU; its protocol estimates the loss from random blocks."""


def count() -> float:
    """Return the validation loss of 7-grams with Kneser-Ney smoothing."""
    corpus = corpora.load_corpus("tinyshakespeare")
    tokenizer = get_tokenizer("char", corpus, 0.1, no_progress)
    train, val = (encode_corpus(corpus, tokenizer, name, 0.1).ids for name in ("train", "val"))
    return KneserNey(train, 7, tokenizer.vocab_size).loss(val)


def draw_plot() -> None:
    """Draw the loss after each evaluated step."""
    result = json.loads(FILE.read_text("utf-8"))
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    run = result["run"]
    points = [(e["step"], e["val_loss"]) for e in run["evaluations"]]
    axes.plot(*zip(*points, strict=True), "o-", color="tab:blue", markersize=4, linewidth=1)
    lines = {
        "7-grams, counted, with Kneser-Ney smoothing": result["counted"],
        "nanoGPT on an A100 (published)": NANOGPT,
    }
    for name, loss in lines.items():
        axes.axhline(loss, color="0.6", linestyle="--", linewidth=1)
        axes.annotate(
            f"{name}: {loss:.4f}",
            (1, loss),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            color="0.4",
        )
    axes.annotate(
        f"laptop: {points[-1][1]:.4f}",
        points[-1],
        xytext=(0, -6),
        textcoords="offset points",
        ha="right",
        va="top",
        color="tab:blue",
    )
    axes.set_xlim(left=0)
    axes.set_ylim(points[-1][1] - 0.05, points[1][1] + 0.05)
    axes.set_xlabel("training steps of 8 × 384 characters")
    axes.set_ylabel("validation loss, nats per character")
    axes.set_title("The preset laptop on Tiny Shakespeare")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(FILE.with_suffix(".png"))


def main() -> None:
    """Train, count, save the result and draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", action="store_true", help="only draw the plot again")
    if not parser.parse_args().plot:
        every = PRESETS["laptop"].config.train.steps // 13
        flags = ["--train.eval-every", str(every), "--train.eval-first"]
        save_result(FILE, {"run": train_preset("laptop", flags), "counted": count()})
    draw_plot()


if __name__ == "__main__":
    main()
