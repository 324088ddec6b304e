"""Encoders whose embeddings are known, and small folders of tasks in both layouts."""

from pathlib import Path

import numpy as np

HEADER = "source\tscore\tsentence1\tsentence2"
SENTEVAL_YEARS = {
    "STS12": ["MSRpar", "MSRvid", "SMTeuroparl", "surprise.OnWN", "surprise.SMTnews"],
    "STS13": ["FNWN", "headlines", "OnWN"],
}


class Planted:
    """Embeddings drawn from the text's own letters, so that they can be drawn again."""

    def __init__(self, width: int = 6):
        self.width = width

    def encode(self, texts: list[str]) -> np.ndarray:
        return np.stack([self.row(text) for text in texts])

    def row(self, text: str) -> np.ndarray:
        return np.random.default_rng(list(text.encode())).normal(size=self.width)


class Telling:
    """The class is what the text says behind the last blank; the rest is noise."""

    def __init__(self, strength: float):
        self.strength = strength

    def encode(self, texts: list[str]) -> np.ndarray:
        rows = Planted(8).encode(texts)
        rows[:, 0] += self.strength * np.array([float(text.split()[-1]) for text in texts])
        return rows


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def pairs(count: int, source: str = "news", seed: int = 0) -> list[tuple[str, str, str, str]]:
    """(source, score, sentence, sentence), all of them different."""
    scores = np.random.default_rng(seed).integers(0, 51, count) / 10
    return [
        (source, f"{score:g}", f"{source} left {row}", f"{source} right {row}")
        for row, score in enumerate(scores)
    ]


def write_sts(root: Path, name: str, rows: list[tuple[str, ...]]) -> Path:
    return write(root / "sts" / f"{name}.tsv", [HEADER, *("\t".join(row) for row in rows)])


def write_classes(root: Path, name: str, rows: list[tuple[str, ...]]) -> Path:
    header = "label\tsentence" if len(rows[0]) == 2 else "label\tsentence1\tsentence2"
    return write(root / "transfer" / f"{name}.tsv", [header, *("\t".join(row) for row in rows)])


def classes(count: int, seed: int, labels: str = "01") -> list[tuple[str, str]]:
    """(label, sentence that ends in the label's place among all)."""
    drawn = np.random.default_rng(seed).integers(0, len(labels), count)
    drawn[: len(labels)] = range(len(labels))
    return [(labels[kind], f"text {seed} {row} {kind}") for row, kind in enumerate(drawn)]


def write_senteval(root: Path) -> None:
    """SentEval's folder, with what is particular about each file."""
    for year, subsets in SENTEVAL_YEARS.items():
        folder = root / "STS" / f"{year}-en-test"
        for number, subset in enumerate(subsets):
            rows = pairs(9, subset, seed=number)
            write(folder / f"STS.input.{subset}.txt", ["\t".join(row[2:]) for row in rows])
            gold = [row[1] for row in rows]
            gold[3] = gold[8] = ""  # not scored, one of them at the end
            write(folder / f"STS.gs.{subset}.txt", gold)
    for part in ("train", "dev", "test"):
        rows = pairs(7, part)
        lines = [f"main-{s}\tf{s}\t2012\t{n}\t{g}\t{a}\t{b}" for n, (s, g, a, b) in enumerate(rows)]
        lines[2] += "\tlicence\tlicence"  # some rows say more
        write(root / "STS" / "STSBenchmark" / f"sts-{part}.csv", lines)
        write(
            root / "SST" / "binary" / f"sentiment-{part}",
            [f"{text}\t{label}" for label, text in classes(20, len(part))],
        )
    sick = [f"{n}\t{a}\t{b}\t{g}\tNEUTRAL" for n, (_, g, a, b) in enumerate(pairs(6, "sick"))]
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    write(root / "SICK" / "SICK_test_annotated.txt", [header, *sick])
    for name in ("MR/rt-polarity", "CR/custrev", "MPQA/mpqa"):
        for end, label in ((".pos", 1), (".neg", 0)):
            rows = [f"{name} caf\u00e9 {row} {label}" for row in range(12)]
            write(root / f"{name}{end}", rows, "latin-1")
    for end, label in (("objective", 1), ("subjective", 0)):
        write(root / "SUBJ" / f"subj.{end}", [f"{end} {row} {label}" for row in range(12)])
    for name, count in (("train_5500", 24), ("TREC_10", 8)):
        kinds = ["DESC:manner", "NUM:date", "ENTY:cremat"]
        rows = [f"{kinds[row % 3]} Who {name} {row} ? {row % 3}" for row in range(count)]
        write(root / "TREC" / f"{name}.label", rows, "latin-1")
    for part, count in (("train", 20), ("test", 8)):
        lines = [f"{row % 2}\t{row}\t{row}\tone {part} {row}\tother {row}" for row in range(count)]
        header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String"
        write(root / "MRPC" / f"msr_paraphrase_{part}.txt", [header, *lines])
