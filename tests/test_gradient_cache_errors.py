"""What users get wrong, and what the cache tells them."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
from gradient_cache_cases import (
    Encoder,
)
from torch import nn

from simcse_fast import GradientCache

pytestmark = pytest.mark.usefixtures("one_thread")


WRONG = [
    pytest.param({"encode": 3}, TypeError, r"encode: expected a callable, .* got 3\.", id="encode"),
    pytest.param({"encode": []}, TypeError, r"encode: .* got \[\]\.", id="no-towers"),
    pytest.param({"encode": [nn.Identity(), 1]}, TypeError, "encode: .*, 1", id="one-tower-bad"),
    *(
        pytest.param({name: value}, error, f"{name}: expected {expected}", id=f"{name}-{value}")
        for name in ("mini_batch_tokens", "mini_batch_size")
        for value, error, expected in (
            (0, ValueError, r"at least 1, got 0\."),
            (-3, ValueError, r"at least 1, got -3\."),
            (2.5, TypeError, r"a whole number or None, got 2\.5\."),
            (True, TypeError, r"a whole number or None, got True\."),
        )
    ),
    pytest.param({"memory_limit": -1}, ValueError, "memory_limit: expected at least 0", id="limit"),
    pytest.param({"memory_limit": 1e9}, TypeError, "memory_limit: expected a whole", id="float"),
    pytest.param(
        {"memory_share": 1.5}, ValueError, r"memory_share: .*\[0, 1\], got 1.5", id="over"
    ),
    pytest.param({"memory_share": -0.1}, ValueError, r"memory_share: .* got -0.1", id="under"),
    pytest.param({"memory_share": float("nan")}, ValueError, "memory_share: .* nan", id="nan"),
    pytest.param({"memory_share": "x"}, TypeError, "memory_share: expected a number", id="text"),
    pytest.param({"memory_share": True}, TypeError, "memory_share: expected a number", id="bool"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_arguments_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        GradientCache(**{"encode": nn.Identity(), **options})


BAD = [
    pytest.param([], ValueError, "columns: expected at least one", id="no-columns"),
    pytest.param([["a", "b"]], TypeError, "columns: expected tensors, .* got list", id="texts"),
    pytest.param([["a"], ["a"]], TypeError, "columns: expected tensors, .* list", id="equal-texts"),
    pytest.param([5, 5], TypeError, "columns: expected tensors, .* got int", id="numbers"),
    pytest.param([{}], TypeError, "columns: expected tensors, .* got dict", id="empty-mapping"),
    pytest.param([{"a": 1}], TypeError, "columns: expected tensors, .* dict", id="no-tensors"),
    pytest.param([torch.tensor(1.0)], TypeError, "columns: expected tensors", id="no-rows-at-all"),
    pytest.param(
        [torch.ones(2, 3), torch.ones(0, 3)],
        ValueError,
        "columns: column 1 has no rows",
        id="empty",
    ),
    pytest.param(
        [{"a": torch.ones(2), "b": torch.ones(3)}],
        ValueError,
        r"columns: .* differ in rows: \{'a': 2, 'b': 3\}",
        id="unequal-rows",
    ),
    pytest.param(
        [torch.ones(2, 3, requires_grad=True)],
        ValueError,
        "columns: column 0 requires a gradient",
        id="waits-for-a-gradient",
    ),
]


@pytest.mark.filterwarnings("error")  # also what is raised where nobody can catch it
@pytest.mark.parametrize(("columns", "error", "message"), BAD)
def test_columns_are_checked(columns, error, message):
    cache = GradientCache(nn.Identity())
    with pytest.raises(error, match=message):
        cache(*columns)
    gc.collect()


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        pytest.param(lambda x: {"sentence_embedding": x}, r"\(4, D\), got dict", id="mapping"),
        pytest.param(lambda x: x[:-1], r"\(4, D\), got shape \(3, 2\)", id="rows-lost"),
        pytest.param(lambda x: x[:, 0], r"\(4, D\), got shape \(4,\)", id="a-number-a-row"),
        pytest.param(
            lambda x: x[:, None], r"\(4, D\), got shape \(4, 1, 2\)", id="three-dimensions"
        ),
        pytest.param(lambda _: None, r"\(4, D\), got NoneType", id="nothing"),
    ],
)
def test_what_comes_back_is_checked(encode, message):
    for context in (torch.no_grad, contextlib.nullcontext):
        with (
            context(),
            pytest.raises(ValueError, match="encode: expected embeddings of .*" + message),
        ):
            GradientCache(encode)(torch.ones(4, 2))


def test_a_column_for_every_tower():
    cache = GradientCache([nn.Identity(), nn.Identity()])
    with pytest.raises(ValueError, match=r"columns: expected 2, one a tower, got 3\."):
        cache(*[torch.ones(2, 3)] * 3)


def test_tokens_are_counted():
    lengths = [9, 1, 9, 1, 9, 1]
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    cache = GradientCache(Encoder(), mini_batch_size=2)
    with torch.no_grad():
        cache({"input_ids": mask, "attention_mask": mask})
    found = cache.statistics
    assert (found.real_tokens, found.padded_tokens, found.mini_batches) == (30, 38, 3)
    assert found.padded_tokens < 54  # of the same mini-batches as the rows come


def test_progress_is_shown_to_those_who_ask(capsys):
    pytest.importorskip("tqdm")
    layer = nn.Linear(2, 2)
    (y,) = GradientCache(layer, mini_batch_size=2, memory_limit=0, progress=True)(torch.ones(4, 2))
    y.sum().backward()
    shown = capsys.readouterr().err
    assert "embedding" in shown
    assert "backward" in shown


def test_embeddings_elsewhere_need_the_model():
    with pytest.raises(ValueError, match=r"encode: embeddings are on meta, .* of cpu; pass model="):
        GradientCache(lambda x: x.to("meta"))(torch.ones(4, 2))


def test_parameters_that_change_before_the_backward_pass():
    encoder = torch.nn.Linear(2, 3)
    first, second = (GradientCache(encoder)(torch.ones(4, 2))[0].sum() for _ in range(2))
    first.backward()
    with torch.no_grad():
        encoder.weight -= encoder.weight.grad
    with pytest.raises(RuntimeError, match="changed in place since the batch was embedded"):
        second.backward()


def test_graphs_that_outlive_their_batch_say_so():
    encoder, left = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh()), []

    def encode(x):
        left.append(encoder(x))
        return left[-1]

    GradientCache(encode, model=encoder, memory_limit=1)(torch.ones(4, 2))
    with pytest.raises(RuntimeError, match="used after its batch had let go of its memory"):
        left[0].sum().backward()
