"""Text to tensors: readers and their refusals, the cache of token ids, batches."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra train")

from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformer
from train_models import save_bert, save_static, sentences, triplets, write_lines
from transformers import AutoTokenizer

from simcse_fast import train
from simcse_fast.errors import InputError
from simcse_fast.training.batches import Batch, Collator, Order, halves
from simcse_fast.training.text_encoder import TextEncoder
from simcse_fast.training.texts import read_columns, read_scored_pairs
from simcse_fast.training.tokens import token_data

ROWS = triplets(30)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"bert": save_bert(folder / "bert"), "static": save_static(folder / "static")}


@pytest.fixture(scope="module")
def bert(models):
    return SentenceTransformer(str(models["bert"]), device="cpu")


@pytest.fixture(scope="module")
def static(models):
    return SentenceTransformer(str(models["static"]), device="cpu")


def texts_of(source, argument):
    return [[text.strip() for text in column.texts()] for column in read_columns(source, argument)]


def as_jsonl(path, rows, names):
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def sources(folder):
    """The same triplets in every form."""
    names = ("anchor", "positive", "negative")
    columns = dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True))
    pq.write_table(pa.table({"id": list(range(30)), **columns}), folder / "named.parquet")
    pq.write_table(
        pa.table({"a": columns["anchor"], "b": columns["positive"]}), folder / "p.parquet"
    )
    return {
        "tsv": write_lines(folder / "bare.tsv", ROWS),
        "tsv-with-header": write_lines(folder / "named.tsv", [names, *ROWS]),
        "tsv-of-simcse": write_lines(folder / "s.tsv", [("sent0", "sent1", "hard_neg"), *ROWS]),
        "parquet": folder / "named.parquet",
        "jsonl": as_jsonl(folder / "named.jsonl", ROWS, names),
        "rows": ROWS,
        "mappings": [dict(zip(names, row, strict=True)) for row in ROWS],
        "frame": pa.table(columns).to_pandas(),
        "columns": columns,
        "dataset": Dataset.from_dict(columns),
    }


def test_triplets_in_every_form_are_the_same(tmp_path):
    expected = [list(column) for column in zip(*ROWS, strict=True)]
    for name, source in sources(tmp_path).items():
        assert texts_of(source, "triplets") == expected, name
    assert texts_of(tmp_path / "p.parquet", "triplets") == expected[:2]


def test_sentences_in_every_form_are_the_same(tmp_path):
    lines = sentences(20)
    pq.write_table(pa.table({"text": lines}), tmp_path / "s.parquet")
    (tmp_path / "crlf.txt").write_text("\r\n".join(lines), encoding="utf-8", newline="")
    forms = {
        "txt": write_lines(tmp_path / "s.txt", lines),
        "crlf": tmp_path / "crlf.txt",
        "tsv": write_lines(tmp_path / "s.tsv", lines),
        "tsv-with-header": write_lines(
            tmp_path / "n.tsv", [("id", "text"), *((n, line) for n, line in enumerate(lines))]
        ),
        "parquet": tmp_path / "s.parquet",
        "jsonl": as_jsonl(tmp_path / "s.jsonl", [(line,) for line in lines], ["text"]),
        "list": lines,
        "dataset": Dataset.from_dict({"text": lines}),
    }
    for name, source in forms.items():
        assert texts_of(source, "unsupervised") == [lines], name


def test_scored_pairs(tmp_path):
    header = ("source", "score", "sentence1", "sentence2")
    path = write_lines(tmp_path / "sts.tsv", [header, ("x", 5, 'a "b', "c"), ("x", 0.5, "d", "e")])
    assert read_scored_pairs(path) == (['a "b', "d"], ["c", "e"], [5.0, 0.5])


def bad(name, content, argument, message):
    return pytest.param(name, content, argument, message, id=f"{argument}-{name}")


@pytest.mark.parametrize(
    ("name", "content", "argument", "message"),
    [
        bad("empty.txt", b"", "unsupervised", "empty.txt is empty; expected one sentence a line"),
        bad(
            "gone.txt", None, "unsupervised", "gone.txt cannot be read (No such file or directory)"
        ),
        bad("b.txt", b"a\0b", "unsupervised", "b.txt is a binary file"),
        bad("l.txt", b"a\n\xe9\n", "unsupervised", "l.txt, line 2: invalid UTF-8"),
        bad(
            "wide.tsv", b"a\tb\n", "unsupervised", "line 1: expected 1 tab-separated fields (text)"
        ),
        bad("s.csv", b"a", "unsupervised", "s.csv must end in one of .txt, .tsv"),
        bad("n.parquet", b"no", "unsupervised", "n.parquet is not a Parquet file"),
        bad(
            "nli.tsv",
            b"a\tb\tc\nd\te\n",
            "triplets",
            "line 2: expected 3 tab-separated fields (anchor, positive, negative), found 2",
        ),
        bad("one.tsv", b"a\n", "triplets", "one.tsv, line 1: expected 2 or 3 tab-separated fields"),
        bad("t.txt", b"a\nb\n", "triplets", "t.txt holds one column of text; expected 2 or 3"),
        bad(
            "bad.jsonl", b'{"anchor": 1\n', "triplets", "line 1: expected a JSON object with anchor"
        ),
        bad(
            "short.jsonl",
            b'{"anchor": "a", "positive": "b"}\n{"anchor": "a"}\n',
            "triplets",
            "short.jsonl, line 2: expected a JSON object with anchor, positive",
        ),
        bad("empty.tsv", b"", "triplets", "empty.tsv is empty"),
        bad("s.txt", b"a\n", "evaluate", "s.txt holds sentences; expected sentence1"),
        bad("s.tsv", b"a\tb\tx\n", "evaluate", "column 2 must hold numbers"),
        bad("e.tsv", b"a\tb\t1\nc\td\t1\n", "evaluate", "scores that are not all equal"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, name, content, argument, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    reader = read_scored_pairs if argument == "evaluate" else lambda p: read_columns(p, argument)
    with pytest.raises(InputError) as refused:
        reader(tmp_path / name)
    assert str(refused.value).startswith(f"{argument}: ")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        pytest.param(
            {"anchor": ["a", "b"], "positive": ["c"]},
            ValueError,
            "anchor 2, positive 1",
            id="length",
        ),
        pytest.param([("a", "b"), ("c",)], ValueError, "row 1 has 1 texts", id="ragged"),
        pytest.param(
            [("a", 1), ("b", 2)], TypeError, "expected an Arrow array of strings", id="int"
        ),
        pytest.param([("a", "b"), ("a", None)], ValueError, "row 1 is null", id="none"),
        pytest.param([], ValueError, "list is empty", id="empty"),
        pytest.param(["ab", "cd"], ValueError, "row 0 is a str; expected a tuple", id="letters"),
        pytest.param(
            DatasetDict(train=Dataset.from_dict({"a": ["x"], "b": ["y"]})),
            TypeError,
            "pass one split",
            id="splits",
        ),
        pytest.param(
            pa.table([["a"], ["b"]], names=["x", "x"]), ValueError, "each column once", id="twice"
        ),
        pytest.param(pa.table({"x": ["a"]}), ValueError, "found x", id="columns"),
    ],
)
def test_bad_values_are_one_sentence(source, error, message):
    with pytest.raises(error, match="triplets: ") as refused:
        read_columns(source, "triplets")
    assert message in str(refused.value)


def test_unreachable_data_set_is_one_sentence():
    with pytest.raises(InputError, match="no/such is no file, and no data set of that name"):
        read_columns("no/such", "unsupervised")


def test_ids_are_those_of_the_model(bert, static, tmp_path):
    lines = [*sentences(50), "T1W1, unheard! c2", " ".join(["c1"] * 99)]
    data = token_data(lines, "unsupervised", TextEncoder(bert.tokenizer, 32), tmp_path)
    found = Collator(data, static=False, twins=True)(Batch(np.arange(len(lines)), 0))
    bert.max_seq_length = 32
    expected = bert.preprocess(lines)
    assert torch.equal(found["columns"][0]["input_ids"], expected["input_ids"])
    assert torch.equal(found["columns"][0]["attention_mask"], expected["attention_mask"])
    assert data.report.truncated == 1
    data = token_data(lines, "unsupervised", TextEncoder(static.tokenizer, None), tmp_path)
    found = Collator(data, static=True, twins=False)(Batch(np.arange(len(lines)), 0))
    expected = static.preprocess(lines)
    assert torch.equal(found["columns"][0]["input_ids"], expected["input_ids"])
    assert torch.equal(found["columns"][0]["offsets"], expected["offsets"])


def test_slow_tokenizers_give_the_same_ids(models, tmp_path, bert):
    class Slow:
        """A tokenizer that is all Python, as far as we see."""

        def __init__(self):
            self.real = AutoTokenizer.from_pretrained(models["bert"])
            self.num_special_tokens_to_add = self.real.num_special_tokens_to_add
            self.get_vocab, self.init_kwargs = self.real.get_vocab, {"do_lower_case": True}

        def __len__(self):
            return len(self.real)

        def __call__(self, texts, **options):
            return self.real(texts, **options)

    lines = [*sentences(20), " ".join(["c1"] * 40)]
    slow, fast = TextEncoder(Slow(), 16), TextEncoder(bert.tokenizer, 16)
    assert slow.slow is not None
    others = [Slow(), Slow()]
    others[0].get_vocab = lambda: {word: len(bert.tokenizer) - n for word, n in vocabulary.items()}
    others[1].init_kwargs = {"do_lower_case": False}
    vocabulary = bert.tokenizer.get_vocab()
    fingerprints = [TextEncoder(one, 16).fingerprint for one in (Slow(), *others)]
    assert fingerprints[0] == slow.fingerprint
    assert len(set(fingerprints)) == 3
    for one, other in zip(slow.encode(lines), fast.encode(lines), strict=True):
        assert np.array_equal(one, other)


def test_rows_without_tokens_are_dropped_and_counted(bert, static, tmp_path):
    lines = ["c1 c2", "", "   ", "c3", "c4 c5"]
    data = token_data(lines, "unsupervised", TextEncoder(bert.tokenizer, 32), tmp_path)
    assert (data.report.rows, data.report.dropped, data.rows.tolist()) == (3, 2, [0, 3, 4])
    # Two halves need two words.
    data = token_data(lines, "unsupervised", TextEncoder(static.tokenizer, None, 2), tmp_path)
    assert data.rows.tolist() == [0, 4]
    rows = [("c1", "c2"), ("c1", ""), ("c3", "c2"), ("c1", "c2")]
    data = token_data(rows, "triplets", TextEncoder(bert.tokenizer, 32), tmp_path)
    assert data.rows.tolist() == [0, 2, 3]
    assert data.report.duplicates == 2  # positives that an earlier row has
    assert data.report.sentences()[1:] == [
        "1 rows with an empty text dropped",
        "2 rows repeat an earlier sentence",
    ]
    with pytest.raises(InputError, match="expected at least two rows with text, found 1"):
        token_data(["c1", "", ""], "unsupervised", TextEncoder(bert.tokenizer, 32), tmp_path)
    assert not list(tmp_path.glob(".unfinished*"))


def test_order_is_a_permutation_of_seed_and_epoch():
    rows = np.arange(100, 123)
    order = Order(rows, 5, seed=7)
    first = [batch.rows.tolist() for batch in order]
    assert [len(batch) for batch in first] == [5] * 4  # the short fifth is left out
    assert len({row for batch in first for row in batch}) == 20
    assert [batch.rows.tolist() for batch in order] == first
    order.set_epoch(1)
    assert [batch.rows.tolist() for batch in order] != first
    assert [len(batch.rows) for batch in Order(rows, 99, seed=7)] == [23]  # the only one


def test_shares_of_processes_make_up_the_batch(bert, static, tmp_path):
    lines = sentences(23)
    for model, is_static in ((bert, False), (static, True)):
        encoder = TextEncoder(model.tokenizer, None, 2)
        data = token_data(lines, "unsupervised", encoder, tmp_path)
        batch = next(iter(Order(data.rows, 23, seed=0)))

        def texts(share, data=data, batch=batch, is_static=is_static):
            collate = Collator(data, static=is_static, twins=True, share=share)
            found = collate(batch)["columns"][1]
            if is_static:
                ends = [*found["offsets"].tolist()[1:], len(found["input_ids"])]
                starts = found["offsets"].tolist()
                return [found["input_ids"][a:b].tolist() for a, b in zip(starts, ends, strict=True)]
            return [row[row > 0].tolist() for row in found["input_ids"]]

        assert [text for rank in range(3) for text in texts((rank, 3))] == texts((0, 1))


def test_halves_hold_every_word_once():
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 12, 50)
    ids = rng.integers(0, 1 << 20, lengths.sum())
    (first, first_lengths), (second, second_lengths) = halves(ids, lengths, np.arange(50), key=3)
    assert np.array_equal(first_lengths, (lengths + 1) // 2)
    assert np.array_equal(second_lengths, lengths // 2)
    starts = [np.cumsum(n) - n for n in (lengths, first_lengths, second_lengths)]
    orders = []
    for row in range(50):
        whole, a, b = (
            part[start[row] : start[row] + n[row]].tolist()
            for part, start, n in zip(
                (ids, first, second), starts, (lengths, first_lengths, second_lengths), strict=True
            )
        )
        assert sorted(a + b) == sorted(whole)
        orders.append(a != whole[::2])
    assert sum(orders) > 40  # dealt in random order
    again = halves(ids, lengths, np.arange(50), key=4)
    assert not np.array_equal(again[0][0], first)


def test_vanished_and_unreadable_inputs_of_train(models, tmp_path):
    with pytest.raises(InputError, match=r"unsupervised: .*gone\.txt cannot be read"):
        train(str(models["static"]), unsupervised=tmp_path / "gone.txt", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
