"""Embedding tables whose gradients are added row by row: the same gradients, dense in the end."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from simcse_fast import GradientCache, info_nce
from simcse_fast.sparse_tables import tables_of

CPU = torch.device("cpu")
VOCABULARY = 400  # rows; with mini-batches of 40 tokens, enough of them for sparse gradients


class Encoder(nn.Module):
    """A table with padding, and one that is used twice: for tokens and for their scores."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(VOCABULARY, 8, padding_idx=0)
        self.tied = nn.Embedding(VOCABULARY, 8)
        self.double()

    def forward(self, features):
        ids, mask = features["input_ids"], features["attention_mask"][..., None]
        tokens = self.words(ids) + torch.tanh(self.tied(ids)) @ self.tied.weight[:8]
        return F.normalize((tokens * mask).sum(1), dim=-1)


def columns():
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows in (24, 30):
        ids = torch.randint(1, VOCABULARY, (rows, 10), generator=generator)
        ids[:, 0] = 1  # a token that begins every row
        mask = torch.arange(10) < torch.randint(1, 11, (rows, 1), generator=generator)
        found.append({"input_ids": ids * mask, "attention_mask": mask.long()})
    return found


def backward(model, cache, batches=1):
    for batch in range(batches):
        inputs = columns()
        embeddings = [model(c) for c in inputs] if cache is None else cache(*inputs)
        info_nce(*embeddings, temperature=0.1 + batch).backward()
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.5], ids=["recomputed", "kept"])
def test_gradients_are_dense_and_those_of_one_batch(share, batches):
    expected = backward(Encoder(), None, batches)
    model = Encoder()
    assert tables_of(model, 40, CPU) == [model.words, model.tied]
    cache = GradientCache(model, mini_batch_tokens=40, memory_share=share)
    found = backward(model, cache, batches)
    assert cache.statistics.mini_batches > 5
    for mine, other in zip(found, expected, strict=True):
        assert mine.layout == torch.strided
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-13)
    assert (model.words.sparse, model.tied.sparse) == (False, False)  # as they were


def test_the_tables_are_left_dense_when_a_pass_fails():
    model = Encoder()

    def fails(features):
        model(features)
        raise RuntimeError("as a device may")

    with pytest.raises(RuntimeError, match="as a device may"):
        GradientCache(fails, model=model, mini_batch_tokens=40)(*columns())
    assert (model.words.sparse, model.tied.sparse) == (False, False)


def hooked(model):
    model.words.weight.register_hook(lambda gradient: gradient)


def watched(model):
    model.words.weight.register_post_accumulate_grad_hook(lambda _: None)


def frozen(model):
    model.words.weight.requires_grad_(False)


def bounded(model):
    model.words.max_norm = 1.0


def balanced(model):
    model.words.scale_grad_by_freq = True


def already(model):
    model.words.sparse = True


@pytest.mark.parametrize("change", [hooked, watched, frozen, bounded, balanced, already])
def test_tables_that_someone_looks_at_stay_dense(change):
    model = Encoder()
    change(model)
    assert tables_of(model, 40, CPU) == [model.tied]


def test_where_dense_gradients_stay():
    model = Encoder()
    assert tables_of(model, 101, CPU) == []  # too many tokens for 400 rows
    assert tables_of(model, 40, torch.device("meta")) == []  # not on a CPU
    assert tables_of(model.forward, 40, CPU) == []  # nobody says what is inside
    assert tables_of(torch.compile(model), 40, CPU) == []  # a compiler would start again


def test_a_table_that_is_not_read_gets_no_gradient():
    model = Encoder()
    model.other = nn.Embedding(VOCABULARY, 8)
    assert model.other in tables_of(model, 40, CPU)
    backward(model, GradientCache(model, mini_batch_tokens=40))
    assert model.other.weight.grad is None
