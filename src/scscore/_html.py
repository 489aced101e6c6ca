"""Pieces of a self-contained HTML page: style, tables, numbers, pictures inside the text."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

STYLE = """
body { font: 15px/1.5 Georgia, "Times New Roman", serif; color: #1a1a1a; max-width: 62em; margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.6em; margin-bottom: 0; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #999; }
p.source { color: #555; margin-top: 0.2em; overflow-wrap: anywhere; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font: 13px/1.4 system-ui, Helvetica, Arial, sans-serif; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding-bottom: 0.4em; caption-side: top; }
th, td { text-align: right; vertical-align: top; padding: 0.15em 0.8em 0.15em 0; }
th { border-bottom: 1px solid #333; font-weight: 600; vertical-align: bottom; }
tbody tr { border-bottom: 1px solid #e4e4e4; }
.text { text-align: left; overflow-wrap: anywhere; }
figure { margin: 1.5em 0; } figcaption { color: #555; font-size: 0.92em; max-width: 46em; } img { max-width: 100%; height: auto; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } table { font-size: 8.5pt; } thead { display: table-header-group; }
  tr, figure { break-inside: avoid; } h2 { break-after: avoid; } div.wide { overflow: visible; } }
"""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """An HTML table; columns of text are flush left, names are escaped, what is missing is a dash."""
    if not rows:
        return f"<p>{escape(caption)}</p>" if caption else ""
    numbers = [all(_is_number(row[j]) for row in rows) for j in range(len(header))]
    kinds = ["" if number else ' class="text"' for number in numbers]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, header, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{escape(cell_text(value))}</td>" for kind, value in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    note = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f'<div class="wide"><table>{note}{top}<tbody>\n{body}\n</tbody></table></div>\n'


def _is_number(value: Any) -> bool:
    return value is None or not isinstance(value, str) or isinstance(value, Formatted)


class Formatted(str):
    """A number as text."""

    __slots__ = ()


def number(value: float | None, form: str) -> str | None:
    return None if value is None else Formatted(format(value, form))


def percent(share: float | None) -> str | None:
    return None if share is None else Formatted(f"{100 * share:.1f} %")


def mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


def cell_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "\N{EN DASH}"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return f"{value:z.3f}" if isinstance(value, float | np.floating) else str(value)


def picture(figure: Any, name: str, caption: str) -> str:
    """A figure as an image inside the page, at its own size; closes the figure."""
    import matplotlib.pyplot as plt

    stream = io.BytesIO()
    figure.savefig(stream, dpi=150, format="png", metadata={"Software": None})
    width = figure.get_size_inches()[0]
    plt.close(figure)
    data = base64.b64encode(stream.getvalue()).decode()
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(name)}" style="width: {width:.2f}in">'
    return f"<figure>{image}<figcaption><b>{escape(name)}.</b> {escape(caption)}</figcaption></figure>\n"
