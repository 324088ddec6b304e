"""Information gain beside its peers, and its bars: python -m benchmarks.bench_information.

Values come first: nothing is timed unless it agrees with ours. Then the methods are timed in
interleaved rounds. Rates are millions of the text's words a second, peers with one thread.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by the libraries when they are loaded, or at their first call.
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}

from benchmarks import harness, information_data, information_gates
from benchmarks import information_peers as peers
from benchmarks.information_data import Texts, numbered
from benchmarks.information_large import (
    correction,
    invented,
    kept_ids,
    memory,
    scaling,
    where_time_goes,
)
from benchmarks.information_rows import (
    ONE,
    TWO,
    Size,
    bar,
    compare,
    engine,
    fastest,
    timed,
    to_table,
    with_peers,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.information_rows import Rows, Steps
    from simcse_fast.information.ids import Numbered

WINDOWS = (5, 10)
MARGINAL = {"probability": "marginal"}


def counting(size: Size, texts: Texts) -> Rows:
    """Ids to KL beside scipy and DuckDB."""
    rows = []
    for count, rounds in {size.few: 3, size.some: size.rounds, size.sentences: 3}.items():
        ids = numbered(texts.array(count))
        steps: Steps = {ONE: engine(ids), TWO: engine(ids, 2)}
        steps["scipy X^T X + KL"] = partial(peers.scipy_kl, ids)
        absent = {}
        if count == size.few:
            absent = with_peers(steps, {"duckdb": partial(duckdb_steps, ids)})
        information_gates.same_gain(steps)
        facts = {"sentences": ids.sentences, "words": len(ids.counts), "absent": absent}
        rows.append(compare("counting", ids.tokens, steps, rounds, **facts))
    slow, whole = rows[0], rows[-1]
    whole["bars"] = bars = [
        bar("counting and KL, M tokens/s a core", whole["rate"][ONE], least=20),
        bar("counting and KL over scipy", fastest(whole, "scipy"), least=10),
    ]
    if not slow["absent"]:
        bars.append(bar("counting and KL over DuckDB", fastest(slow, "DuckDB"), least=25))
    return rows


def duckdb_steps(ids: Numbered) -> Steps:
    """Both ways in SQL."""
    database = peers.Duckdb(ids)
    return {
        "DuckDB self-join + KL": database.self_join,
        "DuckDB join of ordered words + KL": database.ordered_join,
    }


def slowest(size: Size, texts: Texts) -> Rows:
    """Ids to KL beside counts of nltk and gensim, which take lists of words and give no KL."""
    array = texts.array(size.fewest)
    ids, sets = numbered(array), numbered(array, presence=True)
    words = ids.vocabulary.to_pylist()
    lists, width = peers.as_lists(ids, words), WINDOWS[0]
    plan: list[tuple[str, Callable[[], Any], str, Callable[[], Steps]]] = [
        ("sentence", engine(ids), "nltk", partial(information_gates.nltk_sentence, lists, ids)),
        (
            *(f"{width} words", engine(ids, 1, width), "nltk"),
            partial(information_gates.nltk_window, lists, ids, width),
        ),
        ("presence", engine(sets), "gensim", partial(information_gates.gensim, lists, sets)),
    ]
    rows = []
    for context, ours, package, make in plan:
        steps: Steps = {ONE: ours}
        facts = {"sentences": ids.sentences, "context": context}
        absent = with_peers(steps, {package: make})
        row = compare("counting only", ids.tokens, steps, 2, **facts, absent=absent)
        rows.append(row)
    return rows


def from_text(size: Size, texts: Texts) -> Rows:
    """A list of strings to a table beside scikit-learn."""
    array = texts.array(size.few, alike=True)
    strings = array.to_pylist()
    steps: Steps = {ONE: partial(to_table, strings, min_count=1)}

    def sklearn() -> Steps:
        information_gates.same_table(steps[ONE](), *peers.sklearn_table(strings))
        return {"scikit-learn CountVectorizer, X^T X, KL": partial(peers.sklearn_table, strings)}

    absent = with_peers(steps, {"scikit-learn": sklearn})
    tokens = to_table(array).tokens
    facts = {"sentences": len(array), "absent": absent}
    return [compare("text to table", tokens, steps, 2, **facts)]


def splitting(size: Size, texts: Texts) -> Rows:
    """Arrow strings to ids by frequency, beside Python and tokenizers."""
    array = texts.array(size.few, alike=True)
    strings, ids = array.to_pylist(), numbered(array)
    steps: Steps = {ONE: partial(numbered, array, 1), TWO: partial(numbered, array, 2)}
    information_gates.same_words(ids, peers.python_words(strings))
    steps["re, lower, dict"] = partial(peers.python_words, strings)

    def hugging_face() -> Steps:
        words = ids.vocabulary.to_pylist()
        kinds = {k: peers.hugging_face(words, k) for k in peers.SPLITTERS}
        information_gates.same_ids(ids, peers.encoded(kinds[peers.SPLITTERS[0]], strings))
        return {
            f"Hugging Face WordLevel, {kind}": partial(peers.encoded, tokenizer, strings)
            for kind, tokenizer in kinds.items()
        }

    absent = with_peers(steps, {"tokenizers": hugging_face})
    facts = {"sentences": len(array), "bytes": size_of(array), "absent": absent}
    rows = [compare("splitting", ids.tokens, steps, 3, **facts)]
    whole = texts.array(size.sentences)
    steps = {ONE: partial(numbered, whole, 1), TWO: partial(numbered, whole, 2)}
    facts = {"sentences": len(whole), "bytes": size_of(whole)}
    return [*rows, compare("splitting", numbered(whole).tokens, steps, size.rounds, **facts)]


def size_of(array: Any) -> int:
    """Bytes of text."""
    return int(array.nbytes - 4 * len(array))


def end_to_end(size: Size, texts: Texts) -> Rows:
    """Parquet to a table, beside our engine behind Hugging Face's tokenizers, and scikit-learn."""
    path, array = texts.file(size.few, alike=True), texts.array(size.few, alike=True)
    steps: Steps = {threads: partial(to_table, str(path), n) for n, threads in ((1, ONE), (2, TWO))}
    ours = steps[ONE]()

    def hugging_face() -> Steps:
        tokenizer = peers.hugging_face(numbered(array).vocabulary.to_pylist())
        step = partial(to_table, str(path), tokenizer=tokenizer)
        information_gates.same_tables(ours, step())
        return {"ours behind Hugging Face WordLevel": step}

    def sklearn() -> Steps:
        information_gates.same_table(
            to_table(str(path), min_count=1), *peers.sklearn_file(str(path))
        )
        return {
            "scikit-learn CountVectorizer, X^T X, KL": partial(peers.sklearn_file, str(path)),
        }

    absent = with_peers(steps, {"tokenizers": hugging_face, "scikit-learn": sklearn})
    facts = {"sentences": len(array), "absent": absent}
    slow = compare("Parquet to table", ours.tokens, steps, 2, **facts)
    if "tokenizers" not in absent:
        slow["bars"] = [bar("Parquet to table over tokenizers", fastest(slow, "Hugging"), least=8)]
    path = texts.file(size.sentences)
    steps = {threads: partial(to_table, str(path), n) for n, threads in ((1, ONE), (2, TWO))}
    tables = [step() for step in steps.values()]
    information_gates.same_tables(*tables)
    facts = {"sentences": tables[0].sentences}
    whole = compare("Parquet to table", tables[0].tokens, steps, size.rounds, **facts)
    whole["bars"] = [bar("Parquet to table, M tokens/s a core", whole["rate"][ONE], least=8)]
    return [slow, whole]


def contexts(size: Size, texts: Texts) -> Rows:
    """Windows, sets, margins and the matrix, from ids and from Parquet."""
    information_gates.contexts(texts.array(min(size.fewest, 200)), WINDOWS)
    path, ids = str(texts.file(size.some)), numbered(texts.array(size.some))
    steps: Steps = {"sentence": engine(ids)}
    steps |= {f"{width} words": engine(ids, 1, width) for width in WINDOWS}
    facts = {"sentences": ids.sentences}
    rows = [compare("contexts, counting", ids.tokens, steps, size.rounds, **facts)]
    steps = {"sentence": partial(to_table, path)}
    steps |= {f"{width} words": partial(to_table, path, context=width) for width in WINDOWS}
    for name, option in (("presence", {"presence": True}), ("marginal", MARGINAL)):
        steps[name] = partial(to_table, path, **option)
    steps["sentence, and the matrix"] = partial(to_table, path, return_counts=True)
    return [*rows, compare("contexts, Parquet to table", ids.tokens, steps, 3, **facts)]


LENGTHS = (75_000, 150_000, 300_000, 600_000, None)
FULL = Size(
    *(None, 300_000, 100_000, 5_000, LENGTHS),
    *(200_000_000, 1_000_000, ("2 GB", "1.5 GB", "1 GB"), 5, 10),
)
QUICK = Size(
    *(4_000, 3_000, 2_000, 300, (1_000, 2_000, 4_000)),
    *(300_000, 20_000, ("2 GB",), 2, 3),
)


SECTIONS = {
    "counting": counting,
    "slowest": slowest,
    "text": from_text,
    "splitting": splitting,
    "parquet": end_to_end,
    "phases": where_time_goes,
    "memory": memory,
    "scaling": scaling,
    "contexts": contexts,
    "cache": kept_ids,
    "correction": correction,
    "zipf": invented,
}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_information", allow_abbrev=False
    )
    parser.add_argument("--sentences", type=int, metavar="N", help="at most; all of the sample")
    parser.add_argument("--tokens", type=int, metavar="N", help="of the invented corpus; 200 M")
    parser.add_argument("--quick", action="store_true", help="a rehearsal: small sizes, a minute")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="PART", help="a part of it")
    parser.add_argument("--out", type=Path, default=harness.RESULTS, metavar="FOLDER")
    return parser.parse_args()


def size_for(options: argparse.Namespace) -> Size:
    """What the command line asks for."""
    size = QUICK if options.quick else FULL
    if options.tokens:
        size = replace(size, tokens=options.tokens)
    if options.sentences:
        most = options.sentences
        lengths = [min(n or most, most) for n in size.lengths]
        some, few, fewest = (min(n, most) for n in (size.some, size.few, size.fewest))
        size = replace(size, sentences=most, some=some, few=few, fewest=fewest)
        size = replace(size, lengths=tuple(dict.fromkeys(lengths)))
    return size


def main() -> None:
    """Measure and save; what is not whole gets another name."""
    options = parse()
    size = size_for(options)
    source = harness.provenance()
    source["command"] = re.sub(r" --out[= ]\S+", "", source["command"])  # no path of one machine
    name = f"information-cpu-{'rehearsal' if options.quick else harness.machine()}"
    rows: Rows = [{"kind": "text", "text": information_data.source(), "peers": peers.versions()}]
    with tempfile.TemporaryDirectory(prefix="bench-information-") as folder:
        texts = Texts(Path(folder))
        for part in options.only or SECTIONS:
            found, took = timed(partial(SECTIONS[part], size, texts))
            rows += [{**row, "part": part} for row in found]
            print(*found, f"{part}: {took:.0f} s", sep="\n", flush=True)
            unfinished = harness.save(f"unfinished-{name}", rows, options.out)
    if not options.only:
        print(harness.save(name, rows, options.out))
        unfinished.unlink()


if __name__ == "__main__":
    main()
