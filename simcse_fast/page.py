"""Parts of the pages that commands write: one HTML file each, with everything in it."""

from __future__ import annotations

import io
from base64 import b64encode
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from matplotlib.figure import Figure

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem;
  margin: 0 auto; padding: 2rem 1.25rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; background: white; border-radius: 6px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid #8884; }
.scroll { overflow-x: auto; }
"""


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """A whole page.

    Args:
        title: also its first heading.
        body: parts in HTML.
        style: rules beside those of all pages.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>"
        f"<h1>{escape(title)}</h1>\n{chr(10).join(body)}\n</body></html>\n"
    )


def picture(figure: Figure, description: str) -> str:
    """A figure inside the page."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    data = b64encode(image.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells of text."""
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    joined = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>{joined}</table></div>'
