"""Tables in Markdown: what measurements print and documents show."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1) -> str:
    """A Markdown table that ends with a newline.

    Args:
      header: Titles of the columns.
      rows: One sequence of cells per row. Floats are shown with four digits, None as an empty cell.
      words: Number of leading columns that hold words and are aligned to the left. All others are aligned to the right.
    """
    alignment = ["---"] * words + ["--:"] * (len(header) - words)
    lines = [header, alignment, *([_cell(x) for x in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(x: object) -> str:
    if x is None:
        return ""
    return f"{x:.4g}" if isinstance(x, float) else str(x)
