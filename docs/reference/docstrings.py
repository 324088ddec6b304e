"""Our docstrings as griffe and Markdown take them: formulas and examples as they stand."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

FORMULA = re.compile(r"^\w+(\(.*?\))? = ")  # begins a paragraph
MARKUP = (
    (re.compile(r"^Example:$", re.MULTILINE), "Examples:"),  # a section of Google's style
    (re.compile(r": (>=? )"), r": \\\1"),  # not a quotation
)


class Docstrings(Extension):
    """What mkdocs.yml has griffe read the package with."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of a module, class or function as it is loaded."""
        if obj.docstring is not None:
            paragraphs = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(map(rewritten, paragraphs))


def rewritten(paragraph: str) -> str:
    """A paragraph of a docstring."""
    if FORMULA.match(paragraph):
        return "\n".join(f"    {line}" for line in paragraph.splitlines())
    for pattern, replacement in MARKUP:
        paragraph = pattern.sub(replacement, paragraph)
    return paragraph
