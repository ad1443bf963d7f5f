"""The conclusions of the scaling study in docs/studies.md, with numbers from the result file."""

from typing import Any


def predict_loss(law: dict[str, float], parameters: float, characters: float) -> float:
    """Return the loss that a scaling law predicts; see docs/studies.md."""
    p = law["p"]
    of_size, of_data = law["A"] / parameters ** law["alpha"], law["B"] / characters ** law["beta"]
    return float(law["E"] + (of_size**p + of_data**p) ** (1 / p))


def find_crossover(law: dict[str, float], characters: float) -> float:
    """Return the model size above which doubling the text helps more than doubling the model."""
    low, high = 1e3, 1e9
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        from_size = predict_loss(law, 2 * middle, characters)
        low, high = (
            (middle, high)
            if from_size < predict_loss(law, middle, 2 * characters)
            else (low, middle)
        )
    return low


def round_to(number: float, digits: int) -> str:
    """Format a number with `digits` significant digits, such as "3,400" or "1.2 million"."""
    rounded = float(f"{number:.{digits}g}")
    return f"{rounded / 1e6:g} million" if rounded >= 1e6 else f"{rounded:,.0f}"


def findings(result: dict[str, Any]) -> str:
    """Return the conclusions of the scaling study in Markdown."""
    cells, law = result["cells"], result["free"]["law"]
    below = [
        (law["E"] + law["B"] / cell["D"] ** law["beta"] - cell["loss"], cell) for cell in cells
    ]
    below = sorted((x for x in below if x[0] > 0), key=lambda x: -x[0])
    amounts = ", ".join(f"{amount:.4f}" for amount, _ in below)
    cell = below[0][1]
    errors = {
        name: [predicted / measured - 1 for _, measured, predicted in result[name]["held_out"]]
        for name in ("free", "sum")
    }
    worst = {name: max(map(abs, values)) for name, values in errors.items()}
    texts = sorted({cell["D"] for cell in cells})
    is_low = all(error < 0 for error in errors["free"])
    crossovers = [find_crossover(law, characters) for characters in (texts[-1], texts[2])]
    return f"""**The sum does not fit the losses.** The error of a cell is \
predicted loss / measured loss − 1.
The error of a law is the root mean square of the errors of all {len(cells)} cells. The error of
the sum (p = 1) is {result["sum"]["error"]:.1%}.
The confidence intervals of the sum's constants are too wide to be useful, because no sum fits both
the cells with little text and the cells with small models. With p fitted, the error of the law is \
{result["free"]["error"]:.1%}, and
the largest error of a cell is {result["free"]["largest_error"]:.1%}.

**{len(below)} of the {len(cells)} measured losses are lower than the law allows.** With p fitted, \
the law
never predicts a loss below E + B / D^β for a text of D characters. The losses of
{len(below)} cells are lower than this limit, by {amounts} nats per character.
The largest difference is at {round_to(cell["N"], 1)} parameters and {cell["D"]:,} characters.
{"No loss is" if min(c["loss"] for c in cells) > law["E"] else "Some losses are"} below E itself.

**One of the two terms determines the loss.** p is about {law["p"]:.0f}, so the law depends \
almost only on the larger
of the terms A / N^α (parameters) and B / D^β (text).
For models of more than {round_to(crossovers[0], 1)} parameters, trained on the full text, the
law predicts a larger gain from twice as much text than from twice as many parameters. With
{texts[2]:,} characters, about the size of Tiny Shakespeare, this is true of models with more than
{round_to(crossovers[1], 2)} parameters.

**Extrapolation.** Both laws were also fitted without the largest model. With p fitted, the \
law predicts the
losses of the largest model with errors of at most {worst["free"]:.1%}.\
{" All predictions are too low." if is_low else ""} With p = 1 (a sum),
the largest error is {worst["sum"]:.1%}.
"""
