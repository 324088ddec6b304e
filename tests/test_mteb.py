"""mteb on a SentenceTransformer and on a pair: its score is that of evaluate on the same pairs."""

import pytest

pytest.importorskip("mteb", reason="needs mteb, which no extra brings")
pytest.importorskip("sentence_transformers", reason="needs the extra evaluate")

import mteb
from datasets import Dataset, DatasetDict
from evaluation_data import write_sts
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer
from train_models import save_bert, sentences
from transformers import AutoModel, AutoTokenizer

from simcse_fast import evaluate
from simcse_fast.pair_encoder import PairEncoder

TEXTS = sentences(60)
ROWS = [
    (a, b, row * 7 % 11 / 2) for row, (a, b) in enumerate(zip(TEXTS[:30], TEXTS[30:], strict=True))
]


class OurPairs(AbsTaskSTS):
    min_score = 0
    max_score = 5
    metadata = TaskMetadata(
        name="OurPairs",
        dataset={"path": "ours/pairs", "revision": "1"},
        description="Pairs of made-up words.",
        reference=None,
        type="STS",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_spearman",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )

    def load_data(self, **_):
        names = ("sentence1", "sentence2", "score")
        columns = dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))
        self.dataset = DatasetDict(test=Dataset.from_dict(columns))
        self.data_loaded = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("mteb") / "bert")


@pytest.mark.parametrize("kind", ["sentence-transformer", "pair"])
def test_score_is_that_of_evaluate(kind, folder, tmp_path, one_thread):
    if kind == "pair":
        model = PairEncoder(*(one.from_pretrained(folder) for one in (AutoModel, AutoTokenizer)))
    else:
        model = SentenceTransformer(str(folder), device="cpu")
    write_sts(tmp_path, "stsb_test", [("x", str(score), a, b) for a, b, score in ROWS])
    told = mteb.evaluate(model, OurPairs(), cache=None, show_progress_bar=False)
    found = evaluate(model, "STS-B", tmp_path, progress=False)
    assert 100 * told[0].get_score() == pytest.approx(found["STS-B"], abs=1e-3)
