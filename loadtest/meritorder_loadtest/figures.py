"""Figures of a measurement: quantiles, and tables for people."""

from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of them do not exceed; one of them, and not a mean of two.

    Raises:
        ValueError: there are none, or `share` is not within (0, 1].
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"no quantile {share} of {len(values)} values")
    return sorted(values)[-int(-share * len(values) // 1) - 1]


def mean(values: Sequence[float]) -> float:
    """0 of none."""
    return sum(values) / len(values) if values else 0.0


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need; the first to the left, the others, which are numbers, to the right."""
    cells = [[str(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]

    def line(row: Sequence[str]) -> str:
        first, *others = zip(row, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()

    return "\n".join((line(cells[0]), "  ".join("-" * width for width in widths), *(line(row) for row in cells[1:])))
