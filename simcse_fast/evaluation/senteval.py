"""Tasks as SentEval keeps them: one folder a task, each in a format of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simcse_fast.errors import InputError
from simcse_fast.evaluation.rows import (
    Labelled,
    Pairs,
    labelled_of,
    number_of,
    pairs_of,
    read_lines,
)

if TYPE_CHECKING:
    from pathlib import Path

    from simcse_fast.evaluation.tasks import Task

# Sub-sets of a year, in SentEval's order.
YEARS = {
    "sts12": ("MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"),
    "sts13": ("FNWN", "headlines", "OnWN"),
    "sts14": ("deft-forum", "deft-news", "headlines", "images", "OnWN", "tweet-news"),
    "sts15": ("answers-forums", "answers-students", "belief", "headlines", "images"),
    "sts16": ("answer-answer", "headlines", "plagiarism", "postediting", "question-question"),
}
SICK = {"train": "SICK_train.txt", "dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}
# One file a class: label by file.
BINARY = {
    "mr": {"MR/rt-polarity.pos": "1", "MR/rt-polarity.neg": "0"},
    "cr": {"CR/custrev.pos": "1", "CR/custrev.neg": "0"},
    "subj": {"SUBJ/subj.objective": "1", "SUBJ/subj.subjective": "0"},
    "mpqa": {"MPQA/mpqa.pos": "1", "MPQA/mpqa.neg": "0"},
}
TREC = {"train": "TREC/train_5500.label", "test": "TREC/TREC_10.label"}
LATIN = "latin-1"  # what SentEval reads these files as, whatever they are
ROOTS = ("", "downstream", "data/downstream")  # of SentEval's checkout, and above


def files_of(root: Path, task: Task, part: str) -> list[Path]:
    """All files of a part; the folder of data may be that of SentEval as well."""
    names = _names(task.data, part)
    roots = [root / inner for inner in ROOTS]
    top = next((one for one in roots if (one / names[0]).exists()), root)
    return [top / name for name in names]


def read_pairs(root: Path, task: Task, part: str) -> Pairs:
    """Pairs with gold scores.

    Raises:
        ValueError: a file, or a line of it, is not as expected.
    """
    files = files_of(root, task, part)
    if task.data == "stsb":
        rows = [
            (f"{row[0]}/{row[1]}", number_of(row[4], files[0], line), row[5], row[6])
            for line, row in _fields(files[0], least=7)
        ]
        return pairs_of(rows, files[0])
    if task.data == "sickr":
        rows = [
            ("sick", number_of(row[3], files[0], line), row[1], row[2])
            for line, row in _fields(files[0], least=4, skip=1)
        ]
        return pairs_of(rows, files[0])
    rows = []
    for source, given, gold in zip(YEARS[task.data], files[::2], files[1::2], strict=True):
        rows += _year(source, given, gold)
    return pairs_of(rows, files[0].parent)


def read_labelled(root: Path, task: Task, part: str) -> Labelled:
    """Sentences with classes.

    Raises:
        ValueError: a file, or a line of it, is not as expected.
    """
    files = files_of(root, task, part)
    rows: list[tuple[str, ...]]
    if task.data in BINARY:
        labels = BINARY[task.data].values()
        pairs = zip(labels, files, strict=True)
        rows = [(label, text) for label, path in pairs for text in read_lines(path, LATIN)]
        return labelled_of(rows, files[0].parent)
    if task.data == "sst2":
        rows = [(row[1].strip(), row[0]) for _, row in _fields(files[0], least=2)]
    elif task.data == "mrpc":
        rows = [(row[0], row[3], row[4]) for _, row in _fields(files[0], least=5, skip=1)]
    else:
        lines = enumerate(read_lines(files[0], LATIN), start=1)
        rows = [_question(line, files[0], number) for number, line in lines]
    return labelled_of(rows, files[0])


def _names(data: str, part: str) -> list[str]:
    """Paths below the folder `downstream`."""
    if data in YEARS:
        folder = f"STS/{data.upper()}-en-test"
        return [f"{folder}/STS.{kind}.{s}.txt" for s in YEARS[data] for kind in ("input", "gs")]
    if data in BINARY:
        return list(BINARY[data])
    return {
        "stsb": [f"STS/STSBenchmark/sts-{part}.csv"],
        "sickr": [f"SICK/{SICK.get(part)}"],
        "sst2": [f"SST/binary/sentiment-{part}"],
        "trec": [TREC.get(part, "")],
        "mrpc": [f"MRPC/msr_paraphrase_{part}.txt"],
    }[data]


def _year(source: str, given: Path, gold: Path) -> list[tuple[str, float, str, str]]:
    """A sub-set: sentences in one file, their scores, or nothing, in another."""
    fields = _fields(given, least=2)
    scores = read_lines(gold)
    scores += [""] * (len(fields) - len(scores))  # empty lines at the end are scores not given
    if len(scores) != len(fields):
        raise InputError(f"{gold}: has {len(scores)} lines, {given.name} has {len(fields)}.")
    return [
        (source, number_of(score, gold, line), row[0], row[1])
        for (line, row), score in zip(fields, scores, strict=True)
    ]


def _question(line: str, path: Path, number: int) -> tuple[str, str]:
    """DESC:manner How did serfdom develop ? -> its coarse class, and the question."""
    label, colon, rest = line.partition(":")
    _, blank, question = rest.partition(" ")
    if not colon or not blank:
        raise InputError(
            f"{path}, line {number}: expected CLASS:kind and a question, got {line[:40]!r}."
        )
    return label, question


def _fields(path: Path, *, least: int, skip: int = 0) -> list[tuple[int, list[str]]]:
    """Numbers of lines and their fields, behind a header if there is one."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        fields = line.split("\t")
        if number <= skip:
            continue
        if len(fields) < least:
            raise InputError(
                f"{path}, line {number}: expected {least} tab-separated fields, found "
                f"{len(fields)}."
            )
        rows.append((number, fields))
    if not rows:
        raise InputError(f"{path}: holds only its header; expected one row a line.")
    return rows
