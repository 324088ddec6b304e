"""Gradients through the cache are those of the whole batch at once, whatever the columns hold."""

from __future__ import annotations

import pytest
import torch
from gradient_cache_cases import (
    COLUMNS,
    CUTS,
    EVERYTHING,
    LIMITS,
    WIDTH,
    Encoder,
    assert_equal,
    cached,
    gradients_of,
    loss_of,
    padded,
    uncached,
)
from torch import nn

from simcse_fast import GradientCache

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("shapes", COLUMNS)
@pytest.mark.parametrize("many", [False, True], ids=["one-tower", "a-tower-each"])
def test_gradients_are_those_of_the_whole_batch(many, shapes, cut, limit):
    towers = [Encoder(seed) for seed in range(len(shapes) if many else 1)]
    columns = [padded(rows, longest, n, width) for n, (rows, longest, width) in enumerate(shapes)]
    ours, cache = cached(towers, columns, **cut, **limit)
    assert_equal(ours, uncached(towers, columns))
    if cache.budget == 0:
        assert cache.statistics.kept == 0
    if limit == {"memory_limit": EVERYTHING}:
        assert cache.statistics.kept == cache.statistics.mini_batches
    assert cache.statistics.kept_bytes <= cache.budget


@pytest.mark.parametrize("limit", LIMITS)
def test_gradients_in_fp32_are_no_worse_than_those_without_a_cache(limit):
    columns = [padded(9, 8, seed) for seed in range(2)]
    exact = uncached([Encoder()], columns)
    single = Encoder(dtype=torch.float32)
    single.load_state_dict(Encoder().state_dict())
    eager = uncached([single], columns)
    ours, _ = cached([single], columns, mini_batch_tokens=13, **limit)
    for one, plain, true in zip(ours, eager, exact, strict=True):
        allowed = max((plain - true).abs().max().item(), 1e-5)
        assert (one - true).abs().max() <= allowed


@pytest.fixture(scope="module")
def bert():
    """A BERT of transformers, averaged over tokens, in double precision."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = transformers.BertModel(config, add_pooling_layer=False)

        def forward(self, features):
            x = self.bert(**features).last_hidden_state
            mask = features["attention_mask"].unsqueeze(-1).to(x.dtype)
            return (x * mask).sum(1) / mask.sum(1).clamp(min=1e-9)

    return Mean().double()


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "features",
    [
        pytest.param([padded(6, 7, 1), padded(8, 5, 2)], id="right"),
        pytest.param(  # positions count from the left, padding included
            [{name: x.flip(1) for name, x in padded(6, 7, seed).items()} for seed in (1, 2)],
            id="left",
        ),
        pytest.param(
            [{n: x.flip(1) for n, x in padded(6, 7, 1).items()}, padded(6, 9, 2)],
            id="left-and-right",
        ),
        pytest.param([padded(6, 1, 1), padded(3, 6, 2)], id="tokens-of-one"),
        pytest.param(  # averages to nothing, whatever its width
            [
                {n: x * (torch.arange(6) != 2).long()[:, None] for n, x in padded(6, 7, 1).items()},
                padded(6, 7, 2),
            ],
            id="row-without-tokens",
        ),
        pytest.param(
            [{**padded(5, 6, n), "token_type_ids": torch.full((5, 6), n)} for n in (0, 1)],
            id="segments",
        ),
    ],
)
def test_bert(bert, features, limit):
    bert.eval()  # without dropout
    ours, _ = cached([bert], features, mini_batch_tokens=12, **limit)
    assert_equal(ours, uncached([bert], features))


@pytest.mark.parametrize("limit", LIMITS)
def test_plain_tensors(limit):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    columns = [torch.randn(n, 6, dtype=torch.float64) for n in (7, 10)]
    ours, cache = cached([encoder], columns, mini_batch_size=4, **limit)
    assert_equal(ours, uncached([encoder], columns))
    assert cache.statistics.mini_batches == 5  # columns share them: 17 rows in fours
    assert cache.statistics.real_tokens == cache.statistics.padded_tokens == 17


@pytest.mark.parametrize("limit", LIMITS)
def test_bags(limit):
    torch.manual_seed(0)

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(30, 4, dtype=torch.float64)

        def forward(self, features):
            return self.bag(features["input_ids"], features["offsets"])

    columns = [
        {"input_ids": torch.randint(0, 30, (20,)), "offsets": torch.tensor([0, 3, 9, 15])}
        for _ in range(2)
    ]
    encoder = Bag()
    ours, cache = cached([encoder], columns, mini_batch_size=1, **limit)
    assert_equal(ours, uncached([encoder], columns))
    assert cache.statistics.mini_batches == 2  # never cut


@pytest.mark.parametrize("limit", LIMITS)
def test_flat_tokens(limit):
    """Attention without padding: a sample is found by where it begins."""
    torch.manual_seed(0)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(50, 5, dtype=torch.float64)

        def forward(self, features):
            begins = features["cu_seq_lens_q"].long()
            x = self.words(features["input_ids"][0]) * (1 + features["position_ids"][0, :, None])
            rows = torch.arange(len(begins) - 1).repeat_interleave(begins.diff())
            return x.new_zeros(len(begins) - 1, 5).index_add(0, rows, x.tanh())

    columns = []
    for lengths in ([3, 1, 6, 2], [5, 5, 1]):
        begins = torch.tensor([0, *lengths]).cumsum(0).int()
        ids = torch.randint(0, 50, (1, sum(lengths)))
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        columns.append({"input_ids": ids, "position_ids": positions, "cu_seq_lens_q": begins})
    encoder = Flat()
    ours, _ = cached([encoder], columns, mini_batch_tokens=6, **limit)
    assert_equal(ours, uncached([encoder], columns))


@pytest.mark.parametrize(
    "prompt", [2, torch.tensor([2]), torch.full((6,), 2)], ids=["number", "tensor", "by-row"]
)
@pytest.mark.parametrize("limit", LIMITS)
def test_modules_may_change_the_mask_in_place(prompt, limit):
    """As pooling without the prompt does, reading one length from whatever it is given."""
    encoder = Encoder()

    def without_prompt(features):
        length = features["prompt_length"]
        length = int(length.flatten()[0]) if isinstance(length, torch.Tensor) else length
        assert (
            not isinstance(prompt, torch.Tensor) or features["prompt_length"].shape == prompt.shape
        )
        features["attention_mask"][:, :length] = 0
        return encoder(features)

    columns = [{**padded(6, 9, seed), "prompt_length": prompt} for seed in range(2)]
    before = [column["attention_mask"].clone() for column in columns]
    cache = GradientCache(without_prompt, mini_batch_tokens=13, **limit)
    ours = gradients_of([encoder], loss_of(*cache(*columns)))
    for column, mask in zip(columns, before, strict=True):
        assert torch.equal(column["attention_mask"], mask)
    assert_equal(ours, gradients_of([encoder], loss_of(*map(without_prompt, columns))))


@pytest.mark.parametrize("limit", LIMITS)
def test_tasks_reach_their_own_columns(limit):
    towers = {"query": Encoder(0), "document": Encoder(1)}

    def route(features):
        return towers[features["task"]](features)

    columns = [{**padded(6, 7, n), "task": task} for n, task in enumerate(towers)]
    cache = GradientCache(route, mini_batch_tokens=12, **limit)
    ours = gradients_of(list(towers.values()), loss_of(*cache(*columns)))
    assert_equal(ours, gradients_of(list(towers.values()), loss_of(*map(route, columns))))
