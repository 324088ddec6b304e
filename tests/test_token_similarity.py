"""Token similarities of sentence pairs: the product, its page, its plot, what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")

from attribution_cases import Reader, check_fetches_nothing, pair_of_attributions, with_vectors

from simcse_fast.attribution.similarity import token_similarity


def similarity():
    (found,) = token_similarity(*pair_of_attributions())
    return found


def test_token_similarity_is_the_product():
    found = similarity()
    assert found.matrix.tolist() == [[-1, 0, 0.5], [0, 4, 1]]
    assert found.matrix.dtype == found.shares().dtype == np.float32
    assert found.tokens_a == ["<i>red</i>", "ink"]
    # From baselines at the origin the shares add up to the cosine itself.
    whole = [one.vectors[0].sum(0) for one in pair_of_attributions()]
    cosine = whole[0] @ whole[1] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[1])
    assert found.shares().sum() == pytest.approx(cosine, abs=1e-6)
    ink, other = found.strongest(2)
    assert ink == ("ink", "ink", pytest.approx(found.shares()[1, 1]))
    assert other[:2] == ("<i>red</i>", "blue")
    assert repr(found).startswith("TokenSimilarity: 2 x 3 tokens, together +0.7")


def test_token_similarity_of_several_pairs():
    single = pair_of_attributions()
    double = [
        replace(
            one,
            **{
                name: getattr(one, name) * 2
                for name in ("sentences", "tokens", "spans", "scores", "vectors")
            },
            values=np.tile(one.values, 2) * [1, 0],
            errors=np.array([0.25, number]),
        )
        for number, one in enumerate(single)
    ]
    first, second = token_similarity(*double)
    assert np.array_equal(first.matrix, second.matrix)
    assert (first.error_a, first.error_b, second.error_a, second.error_b) == (0.25, 0.25, 0, 1)
    assert not second.shares().any()  # an embedding without length has no cosine


def test_token_similarity_as_dataframe():
    pytest.importorskip("pandas")
    frame = similarity().to_dataframe()
    assert list(frame.columns) == [
        *("position_a", "position_b", "token_a", "token_b", "product", "share")
    ]
    assert frame["product"].tolist() == [-1, 0, 0.5, 0, 4, 1]
    row = frame.iloc[4]
    assert (row["position_a"], row["position_b"]) == (1, 1)
    assert (row["token_a"], row["token_b"]) == ("ink", "ink")


def test_token_similarity_page(tmp_path):
    path = tmp_path / "pair.html"
    page = similarity().to_html(path)
    assert path.read_text(encoding="utf-8") == page
    check_fetches_nothing(page)
    cells = [each for tag, each in Reader(page).tags if tag == "td"]
    assert [cell["class"] for cell in cells] == ["n", "p", "p", "p", "p", "p"]
    assert [cell["style"] for cell in cells] == [
        f"--a:{a:.3f}" for a in (0.25, 0, 0.125, 0, 1, 0.25)
    ]
    assert cells[0]["title"] == "<i>red</i> ~ blue"
    assert "<i>" not in page
    assert "&lt;i&gt;red&lt;/i&gt;" in page


def test_token_similarity_plot():
    pytest.importorskip("matplotlib", reason="needs the extra plots")
    found = similarity()
    axes = found.plot()
    (image,) = axes.get_images()
    assert np.array_equal(image.get_array(), found.shares())
    assert image.norm.vmax == -image.norm.vmin == found.shares().max()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["blue", "ink", "here"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["<i>red</i>", "ink"]
    axes.figure.canvas.draw()


def test_token_similarity_of_no_words():
    empty = with_vectors("", [])
    (found,) = token_similarity(empty, pair_of_attributions()[1])
    assert found.matrix.shape == (0, 3)
    assert found.strongest() == []
    assert "<tbody></tbody>" in found.to_html()


def test_token_similarity_refuses():
    a, b = pair_of_attributions()
    with pytest.raises(ValueError, match=r'b: expected attributions with vectors.*target="vector"'):
        token_similarity(a, replace(b, vectors=None))
    with pytest.raises(ValueError, match="a: expected attributions with vectors"):
        token_similarity(replace(a, vectors=None), b)
    two = replace(b, sentences=b.sentences * 2, vectors=b.vectors * 2)
    with pytest.raises(ValueError, match="b: expected as many sentences as a, 1, got 2"):
        token_similarity(a, two)
    wide = replace(b, vectors=[np.zeros((3, 4), np.float32)])
    with pytest.raises(ValueError, match=r"b: expected vectors as wide .* D = 3 and 4"):
        token_similarity(a, wide)
    with pytest.raises(TypeError, match="a: expected Attributions, got ndarray"):
        token_similarity(a.vectors[0], b)
