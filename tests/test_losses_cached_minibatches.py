"""How cached drop-in losses cut a batch, and what they leave behind."""

import gc
import weakref

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

from sentence_transformers_cases import bert

from simcse_fast import losses
from simcse_fast.losses.cached import _rows_are_samples

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("bert"))


def test_a_loss_that_is_dropped_leaves_nothing_to_the_garbage_collector(model):
    loss = losses.CachedMultipleNegativesRankingLoss(model)
    columns = [model.preprocess([f"w{n} w{n + 1}" for n in range(9)]) for _ in range(2)]
    gc.disable()
    try:
        loss(columns, None).backward()
        slabs = weakref.ref(loss._cache.slabs)
        assert slabs().total > 0
        del loss
        assert slabs() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"mini_batch_size": 64}, 1024),  # 64 rows of 40 tokens would be 2,560
        ({"mini_batch_size": 16}, 640),
        ({"mini_batch_num_tokens": 2000}, 2000),
    ],
)
def test_tokens_of_a_mini_batch_on_a_cpu(options, tokens):
    held = []

    class Seen(torch.nn.Module):
        def forward(self, features):
            held.append(features["input_ids"].numel())
            return {"sentence_embedding": torch.ones(len(features["input_ids"]), 2)}

    loss = losses.CachedMultipleNegativesRankingLoss(Seen(), **options)
    ids = torch.ones(200, 40, dtype=torch.int64)
    with torch.no_grad():
        loss([{"input_ids": ids, "attention_mask": ids}] * 2, None)
    assert sum(held) == 400 * 40
    assert max(held) == tokens // 40 * 40


def test_samples_end_to_end_are_counted_as_rows():
    loss = losses.CachedMultipleNegativesRankingLoss(torch.nn.Identity(), mini_batch_size=3)
    ends = torch.tensor([0, 2, 9, 10, 14])
    flat = {"input_ids": torch.ones(1, 14), "cu_seq_lens_q": ends, "max_length_q": 7}
    cache = loss._cache_for([flat, flat])
    assert (cache.mini_batch_size, cache.mini_batch_tokens) == (3, None)


def test_columns_with_counts_of_images_are_cut_by_the_original():
    pixels = {"input_ids": torch.ones(4, 5), "pixel_values": torch.ones(4, 3, 8, 8)}
    assert _rows_are_samples(pixels)
    assert not _rows_are_samples({**pixels, "num_images_per_sample": torch.tensor([0, 2, 1, 1])})
