"""encode and PairEncoder: each sentence once, in any order, as its model alone would have it."""

import numpy as np
import pytest
import torch
from evaluation_data import Planted

from simcse_fast.encoding import encode

pytest.importorskip("sentence_transformers", reason="needs the extra evaluate")

from sentence_transformers import SentenceTransformer
from train_models import save_bert, save_static, sentences
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM

from simcse_fast.pair_encoder import PairEncoder

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = [*sentences(12), "c1", "c1 c2", *sentences(5), "c3 " * 90]  # twice, short, cut at 64 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("encoding") / "bert", layers=3)


@pytest.fixture(scope="module")
def pair(folder):
    return AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return SentenceTransformer(str(folder), device="cpu")


class Recorder(Planted):
    def __init__(self):
        super().__init__()
        self.calls = []

    def encode(self, texts):
        self.calls.append(texts)
        return super().encode(texts)


def test_each_distinct_sentence_is_encoded_once_the_longest_first():
    recorder, texts = Recorder(), ["bb", "a", "dddd", "a", "ccc", "bb"]
    found = encode(recorder, texts, batch_size=2)
    assert recorder.calls == [["dddd", "ccc"], ["bb", "a"]]
    assert (found.dtype, found.shape) == (np.float32, (6, 6))
    np.testing.assert_array_equal(found, [recorder.row(text).astype(np.float32) for text in texts])


@pytest.mark.parametrize("kind", ["tensor", "list-of-tensors", "lists", "bfloat16"])
def test_what_a_model_returns_may_be_of_any_kind(kind):
    class Other(Planted):
        def encode(self, texts):
            rows = torch.from_numpy(super().encode(texts)).float().requires_grad_()
            return {
                "tensor": rows,
                "list-of-tensors": list(rows),
                "lists": rows.tolist(),
                "bfloat16": rows.bfloat16(),
            }[kind]

    found, expected = encode(Other(), ["a", "b"]), Planted().encode(["a", "b"])
    np.testing.assert_allclose(found, expected, rtol=1e-2 if kind == "bfloat16" else 1e-6)


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_sentence_transformer_in_its_own_way(model, batch_size, capsys):
    found = encode(model, TEXTS, batch_size=batch_size, progress=True)
    alone = [model.encode([text], show_progress_bar=False)[0] for text in TEXTS]
    np.testing.assert_allclose(found, alone, atol=2e-6)
    assert capsys.readouterr().err == ""  # no bar where no one watches


def test_static_models_encode(tmp_path):
    static = SentenceTransformer(str(save_static(tmp_path / "static")), device="cpu")
    expected = static.encode(TEXTS, show_progress_bar=False)
    np.testing.assert_allclose(encode(static, TEXTS), expected, atol=1e-6)


def test_modes_are_as_before_and_dropout_is_off(model, pair):
    for given, top in ((model, model), (pair, pair[0])):
        modules = list(top.modules())
        for number, module in enumerate(modules):
            module.training = number % 3 > 0
        first, second = encode(given, TEXTS[:9]), encode(given, TEXTS[:9])
        assert [module.training for module in modules] == [n % 3 > 0 for n in range(len(modules))]
        np.testing.assert_array_equal(first, second)
        assert not torch.is_inference_mode_enabled()


def broken(*_):
    raise RuntimeError("broken")


def test_modes_are_as_before_when_a_model_fails(pair):
    pair[0].train()
    hook = pair[0].register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="broken"):
        encode(pair, ["c1"])
    hook.remove()
    assert pair[0].training


def written_out(pair, text, pooling):
    """One sentence without padding."""
    tokens = pair[1](text, return_tensors="pt", truncation=True, max_length=64)
    with torch.no_grad():
        out = pair[0].eval()(**tokens, output_hidden_states=True)
    states = [layer[0] for layer in out.hidden_states]  # the word embeddings, then each layer
    return {
        "mean": states[-1].mean(0),
        "cls": states[-1][0],
        "max": states[-1].amax(0),
        "lasttoken": states[-1][-1],
        "pooler": out.pooler_output[0],
        "avg_first_last": (states[1] + states[-1]).mean(0) / 2,
        "avg_top2": (states[-2] + states[-1]).mean(0) / 2,
    }[pooling]


@pytest.mark.parametrize(
    "pooling", ["mean", "cls", "max", "lasttoken", "pooler", "avg_first_last", "avg_top2"]
)
def test_pairs_pool_as_asked(pair, pooling):
    found = encode(pair, TEXTS, pooling=pooling, batch_size=8)
    expected = np.stack([written_out(pair, text, pooling).numpy() for text in TEXTS])
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_pairs_take_the_mean_by_default(pair):
    np.testing.assert_array_equal(encode(pair, TEXTS), encode(pair, TEXTS, pooling="mean"))


def test_pair_encoder_encodes_like_a_sentence_transformer(pair, model):
    wrapped = PairEncoder(*pair)
    expected = model.encode(TEXTS, normalize_embeddings=True, show_progress_bar=False)
    found = wrapped.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True, batch_size=5)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
    batches = [{"text": TEXTS[:7]}, {"text": TEXTS[7:]}]  # as mteb hands them over
    told = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "prompt_type": None}
    np.testing.assert_allclose(wrapped.encode(batches, **told), encode(pair, TEXTS), atol=2e-6)
    a, b = found[:4], found[4:8]
    torch.testing.assert_close(wrapped.similarity(a, b), a @ b.T)
    torch.testing.assert_close(wrapped.similarity_pairwise(2 * a, b), (a * b).sum(1))
    with pytest.raises(TypeError, match="precision: PairEncoder has no such argument"):
        wrapped.encode(TEXTS, precision="int8")


@pytest.mark.parametrize("kind", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}])
@pytest.mark.parametrize(
    "texts",
    [
        pytest.param("c1 c2", id="one"),
        pytest.param([], id="none"),
        pytest.param(["c1 c2", "c3"], id="two"),
    ],
)
def test_pair_encoder_gives_what_a_sentence_transformer_gives(texts, kind, pair, model):
    kind = {"convert_to_numpy": True, **kind}
    expected = model.encode(texts, show_progress_bar=False, **kind)
    found = PairEncoder(*pair).encode(texts, **kind)
    assert type(found) is type(expected)
    assert len(found) == len(expected)
    for row, other in zip(found, expected, strict=True):  # numbers, where there was one text
        np.testing.assert_allclose(row, other, atol=2e-6)


@pytest.mark.parametrize("batch_size", [0, 2.5, "a", True, None])
def test_pair_encoder_names_a_wrong_batch_size(batch_size, pair):
    message = f"batch_size: expected a whole number >= 1, got {batch_size!r}"
    with pytest.raises((TypeError, ValueError), match=message):
        PairEncoder(*pair).encode(["c1"], batch_size=batch_size)


class Returning:
    def __init__(self, value):
        self.value = value

    def encode(self, _):
        return self.value


@pytest.mark.parametrize(
    ("model", "texts", "error", "message"),
    [
        pytest.param("bert", ["a"], TypeError, "model: expected a Sentence.*got str", id="name"),
        pytest.param(object(), ["a"], TypeError, "model: .*got object", id="no-encode"),
        pytest.param((1, 2), ["a"], TypeError, r"pair .*got \(int, int\)", id="no-pair"),
        pytest.param(Planted(), "a", TypeError, "sentences: .*single str", id="one-str"),
        pytest.param(Planted(), ["a", 1], TypeError, "got int at row 1", id="no-str"),
        pytest.param(Planted(), [], ValueError, "one or more, got none", id="nothing"),
        pytest.param(
            Returning(np.ones((2, 3))), ["a"], ValueError, r"\(1, D\).*got \(2, 3\)", id="rows"
        ),
        pytest.param(Returning(np.ones(1)), ["a"], ValueError, r"got \(1,\)", id="no-matrix"),
        pytest.param(Returning(np.ones((1, 0))), ["a"], ValueError, r"got \(1, 0\)", id="no-width"),
        pytest.param(
            Returning(np.array([[1.0, 2.0], [np.nan, 0.0]])),
            ["longer one", "short"],
            ValueError,
            "1 of 2 embeddings hold NaN or infinity; first that of 'short'",
            id="nan",
        ),
    ],
)
def test_bad_input_is_named(model, texts, error, message):
    with pytest.raises(error, match=message):
        encode(model, texts)


def test_widths_that_differ_are_refused():
    class Growing(Planted):
        def encode(self, texts):
            return np.ones((len(texts), len(texts[0])))

    with pytest.raises(ValueError, match=r"one width, got widths \[1, 2\]"):
        encode(Growing(), ["aa", "b"], batch_size=1)


def test_options_that_do_not_fit_are_refused(model, pair, folder):
    with pytest.raises(ValueError, match=r"pooling: belongs to a pair.*'cls'.*SentenceTransformer"):
        encode(model, TEXTS, pooling="cls")
    with pytest.raises(ValueError, match=r"pooling: expected one of pooler, .*got 'best'"):
        encode(pair, TEXTS, pooling="best")
    with pytest.raises(ValueError, match="batch_size: expected a whole number >= 1, got 0"):
        encode(pair, TEXTS, batch_size=0)
    head = BertForMaskedLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="BertForMaskedLM returns no last_hidden_state"):
        encode((head, pair[1]), TEXTS)
    bare = AutoTokenizer.from_pretrained(folder)
    bare.pad_token = None
    with pytest.raises(ValueError, match="has no pad_token"):
        encode((pair[0], bare), TEXTS)
