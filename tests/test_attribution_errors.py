"""What attribution refuses, in one sentence that begins with the argument."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs the extra encoders")

import transformers
from attribution_models import (
    WIDTH,
    WithoutEmbeddings,
    pair_of,
    sentence_transformer,
    tokenizer_of,
    transformer_of,
)
from numpy.testing import assert_allclose
from sentence_transformers.sentence_transformer.modules import LSTM, Normalize
from sentence_transformers_cases import static_model

from simcse_fast.attribution import integrated_gradients, shapley_values

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = [integrated_gradients, shapley_values]
FEW = {integrated_gradients: {"steps": 3}, shapley_values: {"samples": 8}}
THIRTEEN = "the a cat dog bird the a cat dog bird the a cat"


def holds(row, column, value):
    found = torch.zeros(2, WIDTH)
    found[row, column] = value
    return found


def attribute(method, sentences=("a cat", "the dog"), model=None, **options):
    return method(
        pair_of() if model is None else model, sentences, progress=False, **FEW[method] | options
    )


def refused(kind, method, message, *arguments, **options):
    """One clean sentence, which begins as told; `message` is its text or the parts of it."""
    parts = [message] if isinstance(message, str) else message
    with pytest.raises(kind) as caught:
        attribute(method, *arguments, **options)
    said = str(caught.value)
    assert said.startswith(parts[0]), said
    assert all(part in said for part in parts), said
    assert "\n" not in said
    assert said.endswith((".", ")")), said
    assert "  " not in said
    assert said.partition(": ")[0].isidentifier(), said  # the argument's name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "sentences", "message"),
    [
        pytest.param(ValueError, [], "sentences: expected at least one, got none", id="none"),
        pytest.param(ValueError, (), "sentences: expected at least one", id="empty-tuple"),
        pytest.param(
            TypeError, ["a", 3], "sentences: expected strings, got int at row 1", id="number"
        ),
        pytest.param(TypeError, [None], "sentences: expected strings, got NoneType", id="none-in"),
        pytest.param(TypeError, [b"cat"], "sentences: expected strings, got bytes", id="bytes"),
        pytest.param(TypeError, [["a"]], "sentences: expected strings, got list", id="nested"),
        pytest.param(TypeError, None, ("sentences: ", "NoneType"), id="nothing"),
        pytest.param(TypeError, 3, ("sentences: ", "int"), id="a-number"),
    ],
)
def test_sentences(method, kind, sentences, message):
    refused(kind, method, message, sentences)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        pytest.param(
            ValueError,
            torch.zeros(5),
            ("target: expected", "D = 32 and B = 2", "(5,)"),
            id="another-width",
        ),
        pytest.param(ValueError, torch.zeros(3, WIDTH), ("target: ", "(3, 32)"), id="rows"),
        pytest.param(ValueError, torch.zeros(WIDTH, 2), ("target: ", "(32, 2)"), id="transposed"),
        pytest.param(ValueError, torch.zeros(2, WIDTH, 1), ("target: ", "(2, 32, 1)"), id="3-d"),
        pytest.param(
            ValueError, torch.zeros(WIDTH).long(), ("target: ", "torch.int64"), id="integers"
        ),
        pytest.param(
            ValueError,
            holds(1, 3, float("nan")),
            ("target: expected finite numbers, got nan in row 1, column 3",),
            id="nan",
        ),
        pytest.param(
            ValueError, holds(0, 31, float("inf")), ("target: ", "inf in row 0"), id="infinite"
        ),
        pytest.param(
            ValueError,
            lambda e: e[:, 0] * float("nan"),
            ("target: ", "NaN or infinite for sentence 0"),
            id="callable-of-nan",
        ),
        pytest.param(
            ValueError,
            lambda e: torch.where(torch.arange(len(e)) == len(e) - 1, torch.inf, e[:, 0]),
            ("target: ", "NaN or infinite for sentence"),
            id="callable-of-infinity",
        ),
        pytest.param(
            ValueError,
            lambda e: e,
            ("target: the callable got embeddings", "expected one number a row"),
            id="callable-of-rows",
        ),
        pytest.param(ValueError, lambda e: e.sum(), ("target: ", "returned ()"), id="of-a-number"),
        pytest.param(ValueError, lambda _: 1.0, ("target: ", "returned float"), id="of-no-tensor"),
        pytest.param(
            ValueError,
            ["a", "b", "c"],
            "target: 3 sentences for 2; expected one each, or one for all",
            id="sentences",
        ),
        pytest.param(TypeError, {"a": 1}, ("target: expected", "got dict"), id="dictionary"),
        pytest.param(TypeError, None, ("target: expected", "got NoneType"), id="nothing"),
        pytest.param(TypeError, ["a", 3], ("target: expected", "got list"), id="mixed-list"),
    ],
)
def test_targets(method, kind, target, message):
    refused(kind, method, message, target=target)


def test_a_callable_without_gradients():
    """Silent zeros would be wrong; Shapley values need no gradient."""
    message = ("target: ", "gradient")
    refused(ValueError, integrated_gradients, message, target=lambda e: e.detach().sum(1))
    detached = attribute(shapley_values, target=lambda e: e.detach().sum(1))
    plain = attribute(shapley_values, target=lambda e: e.sum(1))
    assert_allclose(np.concatenate(detached.scores), np.concatenate(plain.scores), rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "baseline", "message"),
    [
        (ValueError, torch.zeros(5), ("baseline: expected one word embedding of shape (32,)", "5")),
        (ValueError, torch.zeros(2, WIDTH), ("baseline: ", "(2, 32)")),
        (ValueError, torch.tensor(0.0), ("baseline: ", "()")),
        (ValueError, torch.full((WIDTH,), torch.nan), "baseline: expected finite numbers"),
        (ValueError, "padding", ("baseline: expected one of pad, mask, zero, mean", "'padding'")),
        (ValueError, "", ("baseline: expected one of", "''")),
        (TypeError, None, ("baseline: expected one of", "NoneType")),
        (TypeError, {1: 2}, ("baseline: expected one of", "dict")),
    ],
    ids=["width", "2-d", "0-d", "nan", "unknown", "empty", "nothing", "dictionary"],
)
def test_baselines(kind, baseline, message):
    refused(kind, integrated_gradients, message, baseline=baseline)


OPTIONS = [
    (ValueError, "steps", 0, "steps: expected at least 1, got 0"),
    (ValueError, "steps", -3, "steps: expected at least 1, got -3"),
    (TypeError, "steps", True, ('steps: expected a number or "auto"', "bool")),
    (TypeError, "steps", 1.5, ('steps: expected a number or "auto"', "float")),
    (TypeError, "steps", None, ('steps: expected a number or "auto"', "NoneType")),
    (ValueError, "steps", "many", ('steps: expected a number or "auto"', "'many'")),
    (ValueError, "tolerance", 0, "tolerance: expected more than 0, got 0"),
    (ValueError, "tolerance", -0.1, "tolerance: expected more than 0, got -0.1"),
    (ValueError, "tolerance", float("nan"), "tolerance: expected more than 0, got nan"),
    (TypeError, "tolerance", "small", ("tolerance: ", "str")),
    (ValueError, "rule", "simpson", ("rule: expected one of mapped, midpoint", "'simpson'")),
    (ValueError, "special_tokens", "moving", ("special_tokens: expected one of fixed", "'moving'")),
]
SAMPLES = [
    (ValueError, "samples", 1, "samples: expected at least 2, got 1"),
    (ValueError, "samples", 0, "samples: expected at least 2, got 0"),
    (TypeError, "samples", True, ('samples: expected "auto", "exact" or a number', "bool")),
    (TypeError, "samples", 8.0, ('samples: expected "auto", "exact" or a number', "float")),
    (ValueError, "samples", "all", ('samples: expected "auto", "exact" or a number', "'all'")),
    (ValueError, "masking", "blank", ("masking: expected one of mask, pad, delete", "'blank'")),
    (ValueError, "masking", None, ("masking: expected one of", "None")),
    (ValueError, "seed", -1, ("seed: ", "-1")),
    (TypeError, "seed", "one", ("seed: ", "str")),
]
BOTH = [
    (ValueError, "batch_tokens", 0, "batch_tokens: expected at least 1, got 0"),
    (TypeError, "batch_tokens", "many", ("batch_tokens: ", "str")),
    (ValueError, "unit", "letter", ("unit: ", "word", "token", "'letter'")),
    (ValueError, "unit", None, ("unit: ", "None")),
    (ValueError, "pooling", "average", ("pooling: ", "'average'")),
]
CASES = [
    pytest.param(method, *case, id=f"{method.__name__}-{case[1]}-{case[2]}")
    for method, cases in zip(METHODS, (OPTIONS + BOTH, SAMPLES + BOTH), strict=True)
    for case in cases
]


@pytest.mark.parametrize(("method", "kind", "name", "value", "message"), CASES)
def test_options(method, kind, name, value, message):
    texts = [THIRTEEN, "the dog"]  # so many words that seeds matter
    refused(kind, method, message, texts, **{name: value})


def test_auto_needs_its_rule():
    refused(ValueError, integrated_gradients, "rule: ", steps="auto", rule="midpoint")


def test_exact_takes_twelve_words():
    twelve = THIRTEEN.rpartition(" ")[0]
    message = 'samples: "exact" takes 12 words at most, sentence 1 has 13'
    refused(ValueError, shapley_values, message, ["a cat", THIRTEEN], samples="exact")
    found = attribute(shapley_values, twelve, samples="exact", batch_tokens=4096)
    assert (found.steps[0], found.errors[0]) == (4096, 0)


def model_of(name):
    makers = {
        "text": lambda: "bert-base-uncased",
        "transformer-alone": lambda: transformer_of("bert"),
        "pair-in-a-list": lambda: list(pair_of()),
        "pair-turned-round": lambda: (tokenizer_of("bert"), transformer_of("bert")),
        "triple": lambda: (*pair_of(), "mean"),
        "static": static_model,
        "takes-no-embeddings": lambda: (WithoutEmbeddings(1), tokenizer_of("bert")),
        "clip": lambda: (
            transformers.CLIPTextModel(
                transformers.CLIPTextConfig(
                    vocab_size=99,
                    hidden_size=8,
                    intermediate_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                )
            ),
            tokenizer_of("bert"),
        ),
        "with-a-head": lambda: (
            transformers.BertForMaskedLM(transformer_of("bert").config).double(),
            tokenizer_of("bert"),
        ),
        "recurrent-tail": lambda: sentence_transformer(LSTM(32, 8), Normalize()),
        "slow-tokenizer": lambda: (transformer_of("bert"), Slow()),
        "no-tokenizer": lambda: (transformer_of("bert"), None),
    }
    return makers[name]()


class Slow:
    """As tokenizers written in Python are: without offsets."""

    is_fast, pad_token_id, mask_token_id, model_max_length = False, 0, 4, 64


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("text", TypeError, ("model: expected a SentenceTransformer or a pair", "got str")),
        ("transformer-alone", TypeError, ("model: expected", "pair", "got BertModel")),
        ("pair-in-a-list", TypeError, ("model: expected", "got list")),
        ("pair-turned-round", TypeError, ("model: expected", "pair")),
        ("triple", TypeError, ("model: expected", "got tuple")),
        ("static", ValueError, ("model: expected", "StaticEmbedding", "word vectors")),
        ("takes-no-embeddings", ValueError, ("model: WithoutEmbeddings takes no inputs_embeds",)),
        ("clip", ValueError, ("model: CLIPTextModel takes no inputs_embeds", "BERT")),
        (
            "with-a-head",
            ValueError,
            ("model: BertForMaskedLM returns no last_hidden_state but MaskedLMOutput",),
        ),
        ("recurrent-tail", ValueError, ("model: has a LSTM behind its Transformer",)),
        ("slow-tokenizer", ValueError, ("model: Slow ", "fast tokenizer")),
        ("no-tokenizer", TypeError, ("model: ", "NoneType")),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "__name__", "said"),
)
def test_models(method, name, kind, message):
    refused(kind, method, message, model=model_of(name))


@pytest.mark.parametrize("method", METHODS)
def test_pooling_belongs_to_pairs(method):
    model = sentence_transformer(Normalize())
    message = ("pooling: a SentenceTransformer has its own, got 'cls'; leave it out",)
    refused(ValueError, method, message, model=model, pooling="cls")


@pytest.mark.parametrize("name", ["mask", "pad"])
def test_tokenizers_without_the_token(name):
    model = transformer_of("bert"), tokenizer_of("bert", **{name: None})
    message = (f"baseline: '{name}' needs a tokenizer with a {name} token",)
    refused(ValueError, integrated_gradients, message, model=model, baseline=name)
    message = (f"masking: '{name}' needs a tokenizer with a {name} token",)
    refused(ValueError, shapley_values, message, model=model, masking=name)
    # Everything else goes without.
    found = attribute(integrated_gradients, model=model, baseline="zero")
    assert_allclose(found.residual, 0, atol=1e-10)
    found = attribute(shapley_values, model=model, masking="attention")
    assert_allclose(found.residual, 0, atol=1e-10)
