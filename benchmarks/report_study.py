"""Tables of the study, for benchmarks/report.py."""

from __future__ import annotations

from typing import Any

from simcse_fast.studies.options import METHOD_TITLES

STATIC = """Word vectors trained by contrast between two halves of sentences: R² of their lengths
with what Wikipedia tells of the words, words with a count of 100 or more."""
MINILM = """One encoder, all-MiniLM-L6-v2, weights of the words in each set by each method (target
"self"), seconds of all that a study does for them; R² of a word in a sentence."""
LENGTHS = ("norm", "norm_squared", "whitened_squared", "weighted_squared")
QUANTITIES = ("information_gain", "self_information")


def static(rows: list[dict[str, Any]]) -> list[str]:
    """Lengths of word vectors before and after, from each beginning."""
    known = {
        (row["start"], row["method"], row["quantity"], row["encoder"]): row
        for row in rows
        if row["level"] == "word"
    }
    lines = ["| from | length | information gain, before | after | self-information, before |"]
    lines[0] += " after | words |"
    lines.append("|---|---|" + "---:|" * 5)
    for start in dict.fromkeys(row["start"] for row in rows):
        for method in LENGTHS:
            found = [
                known[start, method, quantity, encoder]
                for quantity in QUANTITIES
                for encoder in ("before", "after")
            ]
            cells = [start, METHOD_TITLES[method], *(f"{one['r_squared']:.3f}" for one in found)]
            cells.append(f"{found[0]['points']:,}")
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def minilm(rows: list[dict[str, Any]]) -> list[str]:
    """Seconds of each method, and what it found."""
    fits = {
        (row["set"], row["method"], row["quantity"]): row
        for row in rows
        if row.get("level") == "occurrence"
    }
    lines = ["| sentences | method | number | s | R², information gain | self-information |"]
    lines.append("|---|---|" + "---:|" * 4)
    for row in rows:
        if "seconds" not in row:
            continue
        place = row["set"], row["method"]
        found = [fits.get((*place, quantity)) for quantity in QUANTITIES]
        count = f"{row['sentences']:,}" if "sentences" in row else ""
        cells = [*place, count, f"{row['seconds']:,.0f}"]
        cells += [f"{one['r_squared']:.3f}" if one else "" for one in found]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def section(part: str, rows: list[dict[str, Any]], about: str) -> list[str]:
    """What docs/benchmarks.md says of one part."""
    text, table = {"static": (STATIC, static), "minilm": (MINILM, minilm)}[part]
    return [f"## The study on {about}: {part}", "", text, "", *table(rows), ""]
