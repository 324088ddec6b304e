"""What attributions look like: tables, explanations, pages, plots, files."""

from dataclasses import fields, replace

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")

from attribution_cases import Reader, attributions, check_fetches_nothing, pair_of_attributions

from simcse_fast.attribution import Attributions
from simcse_fast.attribution.pieces import Piece, depths, pieces, shares

HOSTILE = '<script>alert("x")</script> & $5'
UNICODE = "Die  Katze schläft 🙂\n— مرحبا"


@pytest.fixture
def result():
    """Positive and negative scores, a text to escape, Unicode, and nothing at all."""
    return attributions(
        ("Cats chase mice.", ["Cats", "chase", "mice", "."], [0.5, -0.25, 0.2, 0.05]),
        (HOSTILE, ["<", "script", "$", "5"], [0.1, 0.3, 0.0, -0.2]),
        (UNICODE, ["Katze", "schläft", "🙂", "مرحبا"], [0.4, 0.1, 0.0, 0.2]),
        ("", [], []),
        errors=[0.0042, np.nan, 1e-9, 0.0],
    )


@pytest.fixture
def tokens():
    """Pieces of words, special tokens, and an emoji in two byte-level tokens."""
    made = attributions(
        ("unkind 🙂", ["[CLS]", "un", "kind", "🙂", "\u0142", "[SEP]"], [0, 0.1, 0.3, 0.2, 0.1, 0]),
        unit="token",
    )
    made.spans[0][4] = made.spans[0][3]
    return made


def test_repr_names_the_heaviest_words(result):
    lines = repr(result).splitlines()
    assert lines[0] == "Attributions: integrated gradients of self, 12 words in 4 sentences"
    assert lines[2].endswith("0.750    0.42 %  Cats +0.5, chase -0.25, mice +0.2")
    assert "not known" in lines[3]
    assert "< 0.01 %" in lines[4]
    assert len(lines) == 6  # a sentence with a line break is on one line


def test_repr_of_many_sentences_is_short():
    many = attributions(*[("word " * 30, ["word"], [0.5])] * 30)
    lines = repr(many).splitlines()
    assert (len(lines), lines[-1]) == (13, "...")
    assert max(map(len, lines)) < 80


def test_shares_and_depths():
    scores = np.array([0.5, -0.25, 0.25])
    assert shares(scores).tolist() == [0.5, -0.25, 0.25]
    assert depths(scores).tolist() == [1, -0.5, 0.5]
    assert depths(np.array([np.nan, -2.0])).tolist() == [0, -1]
    assert shares(np.zeros(2)).tolist() == depths(np.zeros(2)).tolist() == [0, 0]
    assert len(depths(np.zeros(0))) == len(shares(np.zeros(0))) == 0


@pytest.mark.parametrize("row", range(4))
def test_pieces_add_up_to_the_sentence(result, row):
    found = pieces(result, row)
    assert "".join(piece.text for piece in found) == result.sentences[row]
    assert [p.text for p in found if p.token is not None] == result.tokens[row]


def test_pieces_of_words_and_special_tokens(tokens):
    assert pieces(tokens, 0) == [
        Piece("[CLS]", 0, chip=True),
        Piece("un", 1),
        Piece("kind", 2),
        Piece(" "),
        Piece("🙂", 3),
        Piece("\u0142", 4, chip=True),  # the other half of the emoji
        Piece("[SEP]", 5, chip=True),
    ]


def test_dataframe_has_a_row_for_each_token(result):
    pytest.importorskip("pandas")
    frame = result.to_dataframe()
    assert list(frame.columns) == [
        *("sentence", "position", "token", "start", "end", "score"),
        *("value", "baseline_value", "residual", "steps", "error"),
    ]
    assert len(frame) == 12
    assert set(frame["sentence"]) == {0, 1, 2}  # the empty one has no token
    assert frame["position"].tolist() == [0, 1, 2, 3] * 3
    row = frame.iloc[1]
    assert (row["token"], row["start"], row["end"], row["score"]) == ("chase", 5, 10, -0.25)
    for _, row in frame.iterrows():
        text = result.sentences[row["sentence"]]
        assert text[row["start"] : row["end"]] == row["token"]
    scores, first = frame.groupby("sentence")["score"].sum(), frame.groupby("sentence").first()
    assert np.allclose(first["baseline_value"] + scores, first["value"])
    assert first["steps"].tolist() == [15, 16, 17]
    assert np.isnan(first["error"][1])


def test_dataframe_of_nothing_has_its_columns():
    pytest.importorskip("pandas")
    frame = attributions(("", [], [])).to_dataframe()
    assert frame.shape == (0, 11)
    assert frame["score"].dtype == np.float64
    assert frame["position"].dtype == np.int64


def test_shap_explanation_adds_up(result):
    pytest.importorskip("shap", reason="needs shap")
    found = result.to_shap()
    assert found.values.dtype == found[0].data.dtype == object
    for row in range(len(result)):
        one = found[row]
        assert one.base_values + one.values.sum() == pytest.approx(result.values[row])
        assert "".join(one.data) == (result.sentences[row] if result.tokens[row] else "")
        assert list(one.feature_names) == result.tokens[row]


def test_shap_explanation_of_tokens_reads_as_the_sentence(tokens):
    pytest.importorskip("shap", reason="needs shap")
    one = tokens.to_shap()[0]
    assert list(one.data) == ["", "un", "kind ", "", "🙂", ""]
    assert list(one.feature_names) == tokens.tokens[0]


@pytest.mark.parametrize("lengths", [(3, 2), (2, 2), (2,)], ids=["ragged", "equal", "one"])
def test_shap_plots_draw_one_sentence(lengths):
    shap = pytest.importorskip("shap", reason="needs shap")
    words = ["red", "wine", "here"]
    found = attributions(
        *[(" ".join(words[:n]), words[:n], [0.5, -0.25, 0.125][:n]) for n in lengths]
    ).to_shap()
    page = shap.plots.text(found[0], display=False)
    assert all(word in page for word in words[: lengths[0]])
    axes = shap.plots.waterfall(found[0], show=False)
    assert any("wine" in label.get_text() for label in axes.get_yticklabels())
    axes.figure.clear()
    shap.plots.bar(found[0], show=False).figure.clear()


def test_shap_explanation_of_vectors_has_an_output_for_each_dimension():
    pytest.importorskip("shap", reason="needs shap")
    pair, _ = pair_of_attributions()
    found = pair.to_shap()
    assert found.values[0].shape == pair.vectors[0].shape
    assert found[0].base_values.tolist() == [0, 0, 0]
    assert found[0][:, 1].values.tolist() == pair.vectors[0][:, 1].tolist()


def test_page_holds_every_sentence_as_it_is(result):
    page = Reader(result.to_html())
    assert page.texts["text"] == [*result.sentences[:3], "(no words)"]
    assert not [tag for tag, _ in page.tags if tag in {"script", "img", "link", "iframe"}]
    assert result.to_html().count("<script") == 0


def test_page_fetches_nothing(result):
    check_fetches_nothing(result.to_html())


def test_page_shades_words_by_score(result):
    words = Reader(result.to_html()).words
    assert len(words) == 12
    first = words[:4]
    assert [word["class"] for word in first] == ["w p", "w n", "w p", "w p"]
    assert [word["style"] for word in first] == [
        *("--a:1.000", "--a:0.500", "--a:0.400", "--a:0.100")
    ]
    assert first[1]["data-tip"] == "-0.25 · -25.0 %"
    assert {word["tabindex"] for word in words} == {"0"}  # the keyboard reaches all of them
    assert words[4]["style"] == "--a:0.333"  # each sentence has its own scale


def test_page_tells_the_figures(result):
    page = result.to_html()
    facts = Reader(page).texts["facts"]
    assert facts[0] == (
        "value 0.7500 baseline value 0.2500 15 nodes estimated error 0.42 % "
        "completeness error +1.0e-17"
    )
    assert "estimated error not known" in facts[1]
    assert "estimated error < 0.01 %" in facts[2]
    assert "Integrated gradients, target self, 4 sentences, a score for each word" in page
    assert "against the largest absolute score of its own sentence" in page
    assert "prefers-color-scheme: dark" in page


def test_page_of_a_callable_with_a_hostile_name(result):
    page = replace(result, target="<lambda>", method="Shapley values").to_html()
    assert "&lt;lambda&gt;" in page
    assert "<lambda>" not in page
    assert "15 coalitions" in page


def test_page_shows_special_tokens_as_chips(tokens):
    words = Reader(tokens.to_html()).words
    assert [word["class"] for word in words] == [
        *("w p chip", "w p", "w p", "w p", "w p chip", "w p chip")
    ]


def test_scale_has_two_sides_only_where_scores_have(result, tokens):
    assert 'class="scale two"' in result.to_html()
    assert 'class="scale one"' in tokens.to_html()


def test_page_is_written_whole(result, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("old", encoding="utf-8")
    assert path.read_text(encoding="utf-8") != result.to_html(path)
    assert path.read_text(encoding="utf-8") == result.to_html()
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]
    with pytest.raises(FileNotFoundError):
        result.to_html(tmp_path / "no" / "page.html")


def test_plot_draws_words_in_order(result):
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    axes = result.plot(1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["<", "script", "$", "5"]
    assert [bar.get_width() for bar in axes.patches] == [0.1, 0.3, 0.0, -0.2]
    positive, negative = axes.patches[0].get_facecolor(), axes.patches[3].get_facecolor()
    assert positive[2] > positive[0]  # blue
    assert negative[0] > negative[2]  # orange
    assert axes.yaxis_inverted()
    assert "error not known" in axes.get_title(loc="left")
    axes.figure.canvas.draw()  # where a dollar would be read as mathematics
    assert result.plot(-1, ax=axes) is axes


@pytest.mark.parametrize("sentence", [4, -5])
def test_plot_refuses_a_sentence_that_is_not_there(result, sentence):
    with pytest.raises(ValueError, match=f"sentence: expected one of 0 to 3, got {sentence}"):
        result.plot(sentence)


def same(one, two):
    """Whether two attributions hold the same, bit for bit."""
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return type(one) is type(two) and one == two


def test_save_and_load_are_exact(result, tokens, tmp_path):
    pytest.importorskip("safetensors", reason="needs the extra encoders")
    path = tmp_path / "result.safetensors"
    for made in (result, tokens, *pair_of_attributions(), attributions(("", [], []))):
        made.save(path)
        loaded = Attributions.load(path)
        for each in fields(Attributions):
            assert same(getattr(made, each.name), getattr(loaded, each.name)), each.name
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.safetensors"]


def test_load_refuses_what_save_did_not_write(result, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="needs the extra encoders")
    (tmp_path / "text").write_text("no tensors", encoding="utf-8")
    with pytest.raises(ValueError, match=r"path: .*text is no whole safetensors file"):
        Attributions.load(tmp_path / "text")
    numpy.save_file({"scores": np.zeros(2)}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"path: .*other holds something else"):
        Attributions.load(tmp_path / "other")
    result.save(tmp_path / "whole")
    (tmp_path / "half").write_bytes((tmp_path / "whole").read_bytes()[:-9])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        Attributions.load(tmp_path / "half")
    with pytest.raises(FileNotFoundError):
        Attributions.load(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        result.save(tmp_path / "no" / "result")
