"""What is shown while a text is read and counted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from simcse_fast.progress import bar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def reading_bar(total: int | None, *, show: bool) -> Iterator[Callable[[int, int], object]]:
    """Bytes of text, with the tokens found so far and a second; gets (bytes, tokens)."""
    found = 0
    with bar(total, "B", "splitting", show=show) as shown:

        def tick(read: int, tokens: int) -> None:
            nonlocal found
            found += tokens
            if shown is not None:
                seconds = shown.format_dict["elapsed"] or 1
                rate = f"{found / 1e6:.1f} M tokens, {found / seconds / 1e6:.1f} M/s"
                shown.set_postfix_str(rate, refresh=False)
                shown.update(read)

        yield tick


@contextmanager
def counting_bar(
    total: int, description: str = "counting", *, show: bool
) -> Iterator[Callable[[int], object]]:
    """Tokens."""
    with bar(total, " tokens", description, show=show) as shown:
        yield (lambda _: None) if shown is None else shown.update
