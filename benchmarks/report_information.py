"""Tables and plots of the information results, for benchmarks/report.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib import pyplot as plt

from benchmarks.information_rows import ONE, TWO

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = {1: "#56B4E9", 2: "#0072B2"}
PEER = "#999999"
INTRODUCTION = """Sentences: {text}. Values agreed before anything was timed. Milliseconds are
medians of interleaved rounds; rates are millions of the text's words a second; "x" is a method's
time over the first one's in the same rounds, the median of the rounds. Peers have one thread."""
NOTES = {
    "counting": """Ids to KL. DuckDB's tables are loaded before the clock runs; its second way joins
each pair of a sentence's distinct words once.""",
    "counting only": """Ids to KL, ours; the peers take lists of words and give counts alone.
nltk's finder counts ordered pairs within a window, gensim sentences that hold both words.""",
    "text to table": "A list of strings to a table, on sentences that every splitter splits alike.",
    "splitting": """Arrow strings to ids by frequency. Python's and Hugging Face's splitters get
lists of strings, Hugging Face's also the finished vocabulary. "our words" gives the same ids;
Whitespace and BertPreTokenizer give punctuation as tokens too, which are not counted.""",
    "Parquet to table": "A file to a table; no ids are kept.",
    "contexts, counting": "Ids to KL, one thread.",
    "contexts, Parquet to table": "The same from a file, and more options, one thread.",
    "cache": "A file to a table whose ids are kept for the next run, one thread.",
}
PHASES = """One thread, Parquet to KL. Looking up is what numbering takes beyond bare splitting;
the vocabulary's time includes giving every token its final number. Entries of a bag stand for all
occurrences of a word in a sentence, so increments are fewer than pairs."""
MEMORY = """Peak of a fresh process, Parquet to table, beyond what was resident after a tiny corpus
had been counted."""
ZIPF = """Invented words, whose frequencies fall as rank^-1.05: {sentences:,} sentences of 5 to 60
words, {tokens:,} tokens, from text to a table with two threads in fresh processes. Counts were
equal bit by bit with and without a limit: the words', their company's, and those of the triangle.
The peak is the whole process's, the libraries included."""
CORRECTION = """The expected gain in closed form ("null") against the mean over {rounds} shuffled
corpora, of words with a count of 20 and more: median of the relative difference, and of its
size, in %."""


def pick(result: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The rows of a kind."""
    return [row for row in result["rows"] if row["kind"] == kind]


def size(row: dict[str, Any]) -> str:
    """How much text."""
    return f"{row['sentences']:,} sentences, {row['tokens'] / 1e6:.2f} M tokens"


def number(value: float) -> str:
    """Three digits or so."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def bars(result: dict[str, Any]) -> list[str]:
    """What was asked for, and what was found."""
    lines = ["| | asked | found | |", "|---|---:|---:|---|"]
    for row in result["rows"]:
        for one in row.get("bars", []):
            sign, asked = (">=", one["least"]) if "least" in one else ("<=", one["most"])
            told = "met" if one["met"] else "not met"
            lines.append(f"| {one['bar']} | {sign} {asked:g} | {one['found']:.3g} | {told} |")
    return [*lines, ""]


def methods(row: dict[str, Any]) -> list[str]:
    """One comparison."""
    context = f", context: {row['context']}" if "context" in row else ""
    lines = [f"{size(row)}{context}:", "", "| | ms | quartiles | M tokens/s | x |"]
    lines += ["|---|---:|---:|---:|---:|"]
    for name, ms in row["ms"].items():
        spread = f"{number(ms['low'])} to {number(ms['high'])}"
        ratio = row["time_over_first"][name]
        cells = [name, number(ms["median"]), spread, number(row["rate"][name]), number(ratio)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {package} | {why} | | | |" for package, why in row.get("absent", {}).items()]
    return [*lines, ""]


def phases(row: dict[str, Any]) -> list[str]:
    """Where the time goes."""
    lines = [f"{size(row)}:", "", "| | ms | share | ns a token |", "|---|---:|---:|---:|"]
    for name, ms in row["ms"].items():
        share, each = 100 * row["share"][name], 1e6 * ms / row["tokens"]
        lines.append(f"| {name} | {number(ms)} | {share:.1f} % | {each:.2f} |")
    per, rate = row["increments_per_token"], row["G increments/s"]
    top = ", ".join(f"{value:.2f} ({where})" for where, value in row["ceiling"].items())
    told = (
        f"Increments a token: {per['triangle']:.2f} in the triangle, {per['rows']:.2f} in rows. "
        f"G increments/s: {rate['triangle']:.2f} in the triangle, {rate['rows']:.2f} in rows, "
        f"{rate['counting']:.2f} over all of counting. Ceiling, bare increments at random places "
        f"of a table: {top}."
    )
    return [*lines, "", told, ""]


def memory(rows: list[dict[str, Any]]) -> list[str]:
    """Peaks by threads."""
    lines = ["| threads | MB | bytes a token beyond 64 MB | s |", "|---:|---:|---:|---:|"]
    for row in rows:
        taken, each = row["taken"] / 1e6, row["bytes_per_token"]
        lines.append(f"| {row['threads']} | {taken:,.0f} | {each:.2f} | {row['s']:.2f} |")
    return [f"{size(rows[0])}:", "", *lines, ""]


def scaling(rows: list[dict[str, Any]]) -> list[str]:
    """Rates by length."""
    names = list(rows[0]["rate"])
    lines = ["| tokens | words | " + " | ".join(names) + " |", "|---:|---:|" + "---:|" * len(names)]
    for row in rows:
        cells = " | ".join(f"{value:.1f}" for value in row["rate"].values())
        lines.append(f"| {row['tokens']:,} | {row['words']:,} | {cells} |")
    return ["M tokens/s:", "", *lines, ""]


def invented(rows: list[dict[str, Any]]) -> list[str]:
    """With and without a limit."""
    lines = ["| memory_limit | peak, GB | passes | s | M tokens/s | apart |", "|---|" + "---:|" * 5]
    for row in rows:
        limit, peak = row["limit"] or "none", f"{row['peak'] / 1e9:.2f}"
        if "error" in row:
            lines.append(f"| {limit} | {peak} | {row['error']} | | | |")
            continue
        apart = f"{row['apart']:.0e}" if "apart" in row else ""
        cells = [
            limit,
            peak,
            str(row["passes"]),
            f"{row['s']:.1f}",
            f"{row['M tokens/s']:.1f}",
            apart,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [ZIPF.format(**rows[0]), "", *lines, ""]


def correction(rows: list[dict[str, Any]]) -> list[str]:
    """By count, one column of each length."""
    heads = " | ".join(f"{row['tokens'] / 1e6:.2f} M tokens" for row in rows)
    lines = [f"| count from | {heads} |", "|---:|" + "---:|" * len(rows)]

    def cell(found: dict[str, float] | None) -> str:
        if found is None:
            return ""
        signed, apart = 100 * found["median"], 100 * found["median_apart"]
        return f"{signed:+.2f}, {apart:.2f} ({found['words']:,} words)"

    for low in dict.fromkeys(low for row in rows for low in row["bands"]):
        cells = " | ".join(cell(row["bands"].get(low)) for row in rows)
        lines.append(f"| {int(low):,} | {cells} |")
    lines.append(f"| all | {' | '.join(map(cell, rows))} |")
    took = "; ".join(f"{row['s']['null']:.1f} s and {row['s']['shuffle']:.1f} s" for row in rows)
    return [CORRECTION.format(**rows[0]), "", *lines, "", f"They took {took}.", ""]


def plot(result: dict[str, Any], path: Path) -> None:
    """Rates by length, and beside the peers'."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10.5, 3.9), gridspec_kw={"width_ratios": (1, 0.8)}
    )
    rows = pick(result, "scaling")
    for name in rows[0]["rate"] if rows else []:
        points = [(row["tokens"], row["rate"][name]) for row in rows]
        threads = 1 + ("2 threads" in name)
        style = "o-" if name.startswith("counting") else "s--"
        left.semilogx(
            *zip(*points, strict=True), style, color=COLOURS[threads], markersize=4, label=name
        )
    lengths = [row["tokens"] for row in rows]
    left.set_xticks(lengths, [f"{count / 1e6:.1f} M" for count in lengths], minor=False)
    left.set_xticks([], minor=True)
    left.set(xlabel="tokens", ylabel="M tokens/s", ylim=(0, 1.25 * left.get_ylim()[1]))
    left.grid(alpha=0.25)
    left.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    peers(result, right)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def peers(result: dict[str, Any], axis: Any) -> None:
    """Bars of counting, one thread, all on the same sentences."""
    row = next((row for row in pick(result, "counting") if len(row["rate"]) > 3), None)
    row = row or next(iter(pick(result, "counting")), None)
    if row is None:
        axis.set_axis_off()
        return
    rates = {name: value for name, value in row["rate"].items() if name != TWO}
    colours = [COLOURS[2] if name == ONE else PEER for name in rates]
    axis.barh(list(rates), list(rates.values()), color=colours)
    for place, value in enumerate(rates.values()):
        axis.annotate(f" {number(value)}", (value, place), va="center", fontsize=8)
    axis.set(xlabel=f"M tokens/s, one thread; {row['sentences']:,} sentences")
    axis.margins(x=0.15)
    axis.invert_yaxis()


def section(result: dict[str, Any], picture: Path, machine: str) -> list[str]:
    """What docs/benchmarks.md says of one machine."""
    (about,) = pick(result, "text")
    plot(result, picture)
    lines = [f"## Information gain on {machine}", "", INTRODUCTION.format(**about), ""]
    lines += [f"![rates by length and beside peers]({picture.name})", "", *bars(result)]
    compared = (
        *(("Counting", "counting"), ("Counting in Python", "counting only")),
        *(("Splitting", "splitting"), ("From text", "text to table")),
        ("From Parquet", "Parquet to table"),
    )
    for title, kind in compared:
        lines += comparisons(result, title, kind)
    tables = (
        ("By length", "scaling", scaling, ""),
        ("Memory", "memory", memory, MEMORY),
        ("A memory limit", "zipf", invented, ""),
        ("Correction", "correction", correction, ""),
    )
    for row in pick(result, "phases"):
        lines += ["### Where the time goes", "", PHASES, "", *phases(row)]
    for title, kind, table, note in tables:
        if rows := pick(result, kind):
            lines += [f"### {title}", "", *([note, ""] if note else []), *table(rows)]
    lines += comparisons(result, "Other contexts", "contexts, counting")
    lines += comparisons(result, "Other options", "contexts, Parquet to table")
    lines += comparisons(result, "Kept ids", "cache")
    found = (f"{name} {version}" for name, version in about["peers"].items())
    return [*lines, f"Peers: {', '.join(found)}.", ""]


def comparisons(result: dict[str, Any], title: str, kind: str) -> list[str]:
    """All rows of a kind under one heading."""
    rows = pick(result, kind)
    if not rows:
        return []
    return [f"### {title}", "", NOTES[kind], "", *(line for row in rows for line in methods(row))]
