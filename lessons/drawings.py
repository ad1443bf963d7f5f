"""The large pictures of the lessons, of which one is also in the README.

python lessons/drawings.py   # writes docs/gpt.svg
"""

import io
import math
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from pictures import (
    ACCENT,
    FILL,
    INK,
    MUTED,
    PAPER,
    SOFT,
    add_dark_colours,
    arrow,
    box,
    cells,
    diagram,
    write,
)

STREAM = 38  # the x of the residual stream, a vertical line


def draw_sum(axes: Axes, x: float, y: float) -> None:
    """Draw an arrow from (x, y) to the residual stream, and a plus sign where the two meet."""
    arrow(axes, (x, y), (STREAM + 1.6, y))
    circle = {"mfc": PAPER, "mec": ACCENT, "mew": 1.8, "zorder": 3}
    axes.plot(STREAM, y, "o", markersize=21, **circle)
    axes.plot(STREAM, y, "+", markersize=10, **circle)


def draw_branch(axes: Axes, y: float, name: str, explanation: str) -> None:
    """Draw a layer beside the residual stream: it reads at height y, and adds its result below."""
    axes.plot(STREAM, y, "o", color=ACCENT, markersize=7)
    arrow(axes, (STREAM + 0.5, y), (43, y))
    box(axes, 48, y, "layer norm", 10, 4, PAPER)
    arrow(axes, (53, y), (56, y))
    box(axes, 65.5, y, "", 19, 5.6, SOFT)
    write(axes, 65.5, y + 1.1, name, bold=True)
    write(axes, 65.5, y - 1.2, explanation, 8)
    axes.plot([65.5, 65.5], [y - 2.8, y - 6.1], "-", color=INK, linewidth=1.3)
    draw_sum(axes, 65.5, y - 6)


def draw_model(text: str, tokens: list[int], target: str, C: int, V: int) -> None:
    """Draw the model with a text, its tokens, and `target`, the character after the text."""
    axes, T, visible = diagram(78, 89), len(text), (text + target).replace(" ", "␣")
    axes.set_ylim(-0.5, 88.5)
    left, right = STREAM - 1.5 * T, STREAM + 1.5 * T + 1
    write(axes, 2, 86, "shape", 9, MUTED, "left")
    write(axes, 12, 86, "here", 9, MUTED, "left")
    for y in (83, 73, 66, 51, 35, 26, 18, 9):
        last, size = ("", "") if y > 80 else (", C", f", {C}") if y > 20 else (", V", f", {V}")
        write(axes, 2, y, f"(B, T{last})", align="left")
        write(axes, 12, y, f"(1, {T}{size})", 9, MUTED, "left")

    letters = ("B  texts in the batch", "T  positions", "C  channels", "V  vocabulary size")
    for line, letter in enumerate(letters):
        write(axes, 63, 87 - 1.8 * line, letter, 8, MUTED, "left")
    cells(axes, left, 87.5, [list(visible[:-1]), [str(token) for token in tokens]], 3, 3)
    write(axes, right, 86, "text", align="left")
    write(axes, right, 83, "tokens", align="left")
    arrow(axes, (STREAM, 81.5), (STREAM, 78.5))
    box(axes, STREAM, 76.5, "token_embedding", 17, 4)
    arrow(axes, (STREAM, 74.5), (STREAM, 71.6))
    write(axes, 65.5, 76.5, "positions 0, 1, …, T − 1")
    arrow(axes, (65.5, 75), (65.5, 72))
    box(axes, 65.5, 70, "position_embedding", 19, 4)
    draw_sum(axes, 56, 70)
    write(axes, 48, 71.5, "(T, C)")

    box(axes, 55, 50.5, "", 42, 26)
    axes.plot([STREAM, STREAM], [70, 32.5], "-", color=ACCENT, linewidth=3)
    axes.plot(STREAM, 32.5, "v", color=ACCENT, markersize=9)
    write(axes, STREAM + 2, 66, "residual stream: each layer adds its result", 9, ACCENT, "left")
    write(axes, 43, 61.3, "Transformer block (n_layer in a row)", 9, INK, "left", bold=True)
    draw_branch(axes, 56.5, "attention", "reads positions up to its own")
    draw_branch(axes, 46, "feed_forward", "works on each position alone")

    box(axes, STREAM, 29.5, "layer norm", 17, 4)
    arrow(axes, (STREAM, 27.5), (STREAM, 24.5))
    box(axes, STREAM, 22.5, "output", 17, 4)
    arrow(axes, (STREAM, 20.5), (STREAM, 15.5), "logits: a score for each possible next character")
    box(axes, STREAM, 13.5, "softmax", 17, 4)
    arrow(axes, (STREAM, 11.5), (STREAM, 8.2), "probabilities")
    write(axes, STREAM, 7.2, "loss: compares the two", bold=True)
    arrow(axes, (STREAM, 3.2), (STREAM, 6.2))
    cells(axes, left, 3, [list(visible[1:])], 3, 3)
    write(axes, right, 1.5, "targets: the next characters", align="left")
    axes.plot([29.5, 27, 27], [76.5, 76.5, 22.5], "--", color=MUTED, linewidth=1.3)
    arrow(axes, (27, 22.5), (29.5, 22.5), color=MUTED)
    write(axes, 26, 42, "tied: the\nsame weights", 8, MUTED, "right")


def draw_rotations() -> None:
    """Draw a fast and a slow pair of channels at four positions, and a query and its key."""
    _, axes = plt.subplots(1, 3, figsize=(7.4, 1.9))
    arrows = [(0, t, f"{t}", INK, "-") for t in range(4)]  # picture, angle, label, colour, style
    arrows += [(1, 0.178 * t, f"{t}", INK, "-") for t in range(4)]
    arrows += [(2, 0.2, "k1", INK, "-"), (2, 1.1, "q2", ACCENT, "-")]
    arrows += [(2, 2.2, "k3", INK, "--"), (2, 3.1, "q4", ACCENT, "--")]
    for i, angle, label, color, style in arrows:
        x, y = math.cos(angle), math.sin(angle)
        line = {"arrowstyle": "-|>", "color": color, "linestyle": style, "shrinkA": 0, "shrinkB": 0}
        axes[i].annotate("", (x, y), (0, 0), arrowprops=line)
        axes[i].text(1.2 * x, 1.15 * y, label, ha="center", va="center", color=color)
    for start in (0.2, 2.2):  # the angle between key and query
        ends = math.degrees(start), math.degrees(start + 0.9)
        axes[2].add_patch(
            mpl.patches.Arc((0, 0), 0.8, 0.8, theta1=ends[0], theta2=ends[1], color=INK)
        )
    axes[0].set_title("fast pair at positions 0 to 3:\n57° per position")
    axes[1].set_title("slow pair at positions 0 to 3:\n10° per position")
    axes[2].set_title("query and key, both 2 later:\nthe same angle between them")
    for axis in axes:
        axis.add_patch(mpl.patches.Arc((0, 0), 2, 2, theta1=0, theta2=180, color=MUTED))
        axis.set(xlim=(-1.4, 1.4), ylim=(-0.1, 1.3), aspect="equal")
        axis.axis("off")


def draw_old_and_new() -> None:
    """Draw the layers of GPT-2 and of nanogpt's Modern model side by side."""
    axes = diagram(72, 69)
    old_boxes = [
        "token embedding",
        "add position embedding",
        "layer norm",
        "attention",
        "layer norm",
    ]
    old_boxes += ["feed-forward: GELU", "layer norm", "output = token embedding"]
    new_boxes = ["token embedding", "look-back, RMSNorm", "RMSNorm", "attention: QK-norm, rotary"]
    new_boxes += ["RMSNorm", "feed-forward: ReLU²", "RMSNorm", "untied output", "soft cap"]
    for x, title, names in ((19, "GPT-2", old_boxes), (55, "modern", new_boxes)):
        axes.add_patch(
            plt.Rectangle((x - 17, 15.2), 32, 30.4, fill=False, edgecolor=MUTED, ls="--")
        )
        write(axes, x + 14, 44.2, "Transformer block", 8, MUTED, "right")
        below = 2.4
        for y, name in zip([6, 12, 19, 25, 33, 39, 49, 55, 61], names, strict=False):
            arrow(axes, (x, below), (x, y - 2))
            box(axes, x, y, name, 26, 4, FILL if name in old_boxes else SOFT)
            below = y + 2
        arrow(axes, (x, below), (x, 66))
        for start, end in ((16.2, 29), (30.2, 43)):  # residual connections
            plt.plot([x, x - 14.3, x - 14.3], [start, start, end], "-", color=INK, linewidth=1.3)
            arrow(axes, (x - 14.3, end), (x - 1, end))
            write(axes, x, end, "⊕", 13)
        write(axes, x, 1.2, "tokens")
        write(axes, x, 67.4, f"{title}: logits", bold=True)


if __name__ == "__main__":
    draw_model("First Cit", [18, 47, 56, 57, 58, 1, 15, 47, 58], "i", 64, 65)
    picture = io.StringIO()
    plt.savefig(picture, format="svg", metadata={"Date": None})
    file = Path(__file__).parent.parent / "docs" / "gpt.svg"
    file.write_text(add_dark_colours(picture.getvalue()), "utf-8")
