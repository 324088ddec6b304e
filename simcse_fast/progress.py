"""Bars on a terminal, after two seconds, where tqdm is installed."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def bar(total: int | None, unit: str, description: str, *, show: bool) -> Iterator[Any]:
    """A bar, or None where nobody would see it."""
    try:
        from tqdm import tqdm  # noqa: PLC0415 - optional
    except ImportError:
        show = False
    if not show:
        yield None
        return
    options = {"unit_scale": True, "delay": 2, "disable": None, "leave": False}
    with tqdm(total=total, unit=unit, desc=description, **options) as shown:
        yield shown
