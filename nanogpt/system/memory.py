"""A format for large numbers, such as sizes of memory."""

PREFIXES = {
    **{1e30: "Q", 1e27: "R", 1e24: "Y", 1e21: "Z", 1e18: "E", 1e15: "P", 1e12: "T", 1e9: "G"},
    **{1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "µ"},
}
"""The SI prefixes, by their values."""


def format_quantity(value: float, unit: str) -> str:
    """Format a value with three significant digits and an SI prefix, such as 1.23 ms.

    A value that is too large for every prefix has an exponent, such as 1.23e+45 s.
    """
    value = float(f"{value:.3g}")  # round first, so that 999,600 becomes 1 M
    if value >= 1e33:
        return f"{value:.3g} {unit}".strip()
    size = next((size for size in PREFIXES if value >= size), 1.0)
    return f"{value / size:.3g} {PREFIXES[size]}{unit}".strip()


def format_count(value: float) -> str:
    """Format a whole number exactly, such as 10,672,512; from 10¹⁵ on, with an SI prefix."""
    return f"{value:,.0f}" if value < 1e15 else format_quantity(value, "")
