"""The style of all pictures, and the parts of diagrams: boxes, arrows, and matrices with numbers.

A picture must be legible on a light and on a dark page, and printed in grey. So it uses only the
colours below; on a dark page, a rule in the SVG file replaces each by its counterpart. Give lines
different styles or labels too: no picture may depend on its colours.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

INK, MUTED, LINE = "#1f2328", "#6e7781", "#d0d7de"  # text and lines; secondary text; grid
ACCENT, SOFT = "#0550ae", "#b6d7fe"  # what the picture is about: lines and text; filled areas
FILL, PAPER = "#f0f2f5", "#fffffe"  # boxes; background
DARK = {
    INK: "#e6edf3",
    MUTED: "#9198a1",
    LINE: "#3d444d",
    ACCENT: "#79c0ff",
    SOFT: "#1f4f85",
    FILL: "#262c36",
    PAPER: "#0d1117",
}
"""The colour on a dark page of each colour above."""

plt.rcParams.update(
    {
        "figure.figsize": (7, 3.6),
        "figure.constrained_layout.use": True,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "axes.prop_cycle": mpl.cycler(
            color=[INK, ACCENT, MUTED, INK, ACCENT, MUTED],
            linestyle=["-", "-", "-", "--", "--", "--"],
        ),
        "grid.color": LINE,
        "image.cmap": "gray_r",
        "legend.frameon": False,
        "svg.fonttype": "none",
        "svg.hashsalt": "lessons",
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    }
)


def add_dark_colours(svg: str) -> str:
    """Return the picture with a rule that replaces its colours on a dark page.

    The date is left out, so that a picture that is drawn again stays the same.
    """
    rules = "".join(
        f'[style*="{part}: {light}"]{{{part}:{dark}!important}}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    svg = re.sub(r" *<dc:date>.*</dc:date>\n", "", svg)
    return svg.replace("</style>", f"@media(prefers-color-scheme:dark){{{rules}}}</style>", 1)


def show(name: str) -> None:
    """Show the current picture; without a display, save it and print the name of the file."""
    if mpl.get_backend().lower() != "agg":
        plt.show()
        return
    directory = Path(__file__).parent / "output"
    directory.mkdir(exist_ok=True)
    lesson = re.sub(r"\W", "", Path(sys.argv[0]).stem)
    file = directory / f"{lesson}-{name}.svg"
    plt.savefig(file)
    plt.close()
    print(f"picture: {file}")


def diagram(width: float, height: float) -> Axes:
    """Return axes without lines for a diagram: 10 units are one inch, y points up."""
    _, axes = plt.subplots(figsize=(width / 10, height / 10), layout="none")
    axes.set_position((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes


def box(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    width: float = 12,
    height: float = 4,
    color: str = FILL,
    size: float = 9,
) -> None:
    """Draw a box with a text; x and y are its centre. `color` is FILL, SOFT or PAPER."""
    corner = (x - width / 2 + 0.5, y - height / 2 + 0.5)
    style = mpl.patches.BoxStyle("round", pad=0.5, rounding_size=0.8)
    axes.add_patch(
        mpl.patches.FancyBboxPatch(
            corner, width - 1, height - 1, style, facecolor=color, edgecolor=INK, linewidth=1
        )
    )
    write(axes, x, y, text, size)


def write(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    size: float = 9,
    color: str = INK,
    align: str = "center",
    bold: bool = False,
) -> None:
    """Write a text; x is its centre, or its left or right edge (`align`), y its centre."""
    weight = "bold" if bold else "normal"
    axes.text(x, y, text, color=color, size=size, ha=align, va="center", weight=weight)


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    color: str = INK,
    bend: float = 0,
    style: str = "-",
) -> None:
    """Draw an arrow, with a text right of its middle. `bend` curves it; `style` is - or -- or :."""
    axes.annotate(
        "",
        end,
        start,
        arrowprops={
            "arrowstyle": "-|>",
            "color": color,
            "linewidth": 1.3,
            "linestyle": style,
            "shrinkA": 0,
            "shrinkB": 0,
            "connectionstyle": f"arc3,rad={bend}",
        },
    )
    if text:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        write(axes, x + 0.8, y, text, 8, MUTED, "left")


def cells(
    axes: Axes,
    x: float,
    y: float,
    rows: Sequence[Sequence[str]],
    width: float = 4,
    height: float = 3,
    filled: Sequence[Sequence[bool]] | None = None,
    title: str = "",
    size: float = 8,
) -> None:
    """Draw a table of texts; x and y are its top left corner. `filled` cells are in SOFT."""
    for i, row in enumerate(rows):
        for j, text in enumerate(row):
            color = SOFT if filled is not None and filled[i][j] else PAPER
            corner = (x + j * width, y - (i + 1) * height)
            axes.add_patch(
                plt.Rectangle(corner, width, height, facecolor=color, edgecolor=INK, linewidth=0.8)
            )
            write(axes, corner[0] + width / 2, corner[1] + height / 2, text, size)
    if title:
        write(axes, x + len(rows[0]) * width / 2, y + 1.6, title)
