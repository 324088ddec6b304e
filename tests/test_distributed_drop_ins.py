"""The drop-in losses on several processes: against the originals, and against one process."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch.nn import functional as F

if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)
if importlib.util.find_spec("open_clip") is None:
    pytest.skip("open_clip is not installed", allow_module_level=True)
pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

import distributed_drop_ins as drop_ins
import processes

from simcse_fast import losses

WORLDS = (2, 4)
TOLERANCE = {"rtol": 1e-11, "atol": 1e-13}


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """World size -> what its ranks found; started once for all tests."""
    folder = tmp_path_factory.mktemp("drop_ins")
    return {n: processes.run(n, drop_ins.drop_ins, folder / str(n), n) for n in WORLDS}


@pytest.fixture(params=WORLDS, ids=lambda world: f"{world}-ranks")
def world(request):
    return request.param


@pytest.fixture
def found(worlds, world):
    return worlds[world]


def joined(parts, factor):
    """The mean of the ranks' losses, and their gradients as those of one process."""
    loss = torch.stack([part[0] for part in parts]).mean()
    return [loss, *(factor * torch.cat(x) for x in zip(*(p[1:] for p in parts), strict=True))]


# Four processes on a small machine take some of the options.
RANKING = [(world, number) for world in WORLDS for number in drop_ins.SOME[world]]


@pytest.mark.parametrize(("world", "number"), RANKING)
def test_ranking_gives_the_original_and_for_any_split_one_process(found, world, number):
    columns, options = drop_ins.RANKING[number]
    for one in found:
        ours, theirs = (one[f"ranking-{number}-{name}"] for name in ("ours", "theirs"))
        torch.testing.assert_close(ours, theirs, **TOLERANCE)
    rows = [x.requires_grad_() for x in drop_ins.samples(columns, sum(drop_ins.UNEVEN[world]))]
    original = drop_ins.originals.MultipleNegativesRankingLoss
    expected = drop_ins.ranking(rows, original, scale=5.0, **options)
    uneven = joined([one[f"ranking-{number}-uneven"] for one in found], 1 / world)
    torch.testing.assert_close(uneven, expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["dots", "symmetric"])
def test_other_rankings_give_the_original(found, name):
    for one in found:
        torch.testing.assert_close(one[f"{name}-ours"], one[f"{name}-theirs"], **TOLERANCE)


def test_ranking_in_bfloat16_is_no_worse_than_the_original(found, world):
    split = drop_ins.EVEN[world]
    rows = [x.bfloat16().double().requires_grad_() for x in drop_ins.samples(3, sum(split))]
    original = drop_ins.originals.MultipleNegativesRankingLoss
    exact = drop_ins.ranking(rows, original, scale=5.0)
    ours, theirs = (
        [
            (x - y).norm()
            for x, y in zip(
                joined([o[f"narrow-{n}"] for o in found], 1 / world), exact, strict=True
            )
        ]
        for n in ("ours", "theirs")
    )
    assert all(x <= y for x, y in zip(ours, theirs, strict=True)), (ours, theirs)


def test_cached_gives_the_original_and_for_any_split_one_process(found, world):
    for one in found:
        torch.testing.assert_close(one["cached-ours"], one["cached-theirs"], **TOLERANCE)
    original = drop_ins.originals.MultipleNegativesRankingLoss
    rows = drop_ins.samples(3, sum(drop_ins.EVERY[world]))
    uneven = [
        torch.stack(x).mean(0) for x in zip(*(o["cached-uneven"] for o in found), strict=True)
    ]
    torch.testing.assert_close(uneven, drop_ins.weight_gradient(original, rows), **TOLERANCE)


@pytest.mark.parametrize(("local", "grad"), drop_ins.CLIP)
def test_clip_gives_the_original(found, local, grad):
    for one in found:
        ours, theirs = (one[f"clip-{local}-{grad}-{name}"] for name in ("ours", "theirs"))
        torch.testing.assert_close(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("grad", [True, False])
def test_clip_of_the_whole_batch_for_any_split(found, world, grad):
    split = drop_ins.UNEVEN[world]
    inputs = [x.requires_grad_() for x in drop_ins.samples(2, sum(split))]
    inputs += drop_ins.scale_and_bias()
    expected = drop_ins.gradients(losses.ClipLoss()(*inputs), inputs)
    parts = [one[f"clip-False-{grad}-uneven"] for one in found]
    for part in parts:  # the value, and the gradients of the scale and the bias, on every rank
        torch.testing.assert_close([part[0], *part[3:]], [expected[0], *expected[3:]], **TOLERANCE)
    features = joined([part[:3] for part in parts], 1 / world if grad else 1.0)
    torch.testing.assert_close(features, expected[:3], **TOLERANCE)


def local_clip(whole, split, rank, constant):
    """The rows of one rank against all, in plain torch: world / total times their sum."""
    mine = [x.split(split)[rank] for x in whole]
    images, texts = [x.detach() for x in whole] if constant else whole
    scale, bias = drop_ins.scale_and_bias()
    labels = torch.arange(len(mine[0])) + sum(split[:rank])
    total = F.cross_entropy(scale * mine[0] @ texts.T + bias, labels, reduction="sum")
    total = total + F.cross_entropy(scale * mine[1] @ images.T + bias, labels, reduction="sum")
    return total / 2 * len(split) / sum(split), scale


@pytest.mark.parametrize("grad", [True, False])
def test_clip_of_own_rows_for_any_split(found, world, grad):
    split = drop_ins.UNEVEN[world]
    whole = [x.requires_grad_() for x in drop_ins.samples(2, sum(split))]
    parts = [local_clip(whole, split, rank, not grad) for rank in range(world)]
    expected = torch.autograd.grad(sum(loss for loss, _ in parts), whole, retain_graph=True)
    for rank, one in enumerate(found):
        ours, (loss, scale) = one[f"clip-True-{grad}-uneven"], parts[rank]
        torch.testing.assert_close(ours[0], loss.detach(), **TOLERANCE)
        torch.testing.assert_close(
            ours[3], torch.autograd.grad(loss, scale, retain_graph=True)[0], **TOLERANCE
        )
        mine = [x.split(split)[rank] for x in expected]
        torch.testing.assert_close(ours[1:3], mine, **TOLERANCE)


@pytest.mark.parametrize("number", range(2))
def test_views_of_any_split_are_one_process(found, world, number):
    views = [x.requires_grad_() for x in drop_ins.samples(2, sum(drop_ins.UNEVEN[world]))]
    expected = drop_ins.gradients(losses.NTXentLoss(**drop_ins.VIEWS[number])(*views), views)
    ours = joined([one[f"views-{number}"] for one in found], 1 / world)
    torch.testing.assert_close(ours, expected, **TOLERANCE)


REFUSED = "ValueError: process_group: rank 1 refused the arguments before anything was gathered"
ERRORS = {
    "clip-world": ("ValueError: world_size: expected {world}, as in the default group",) * 2,
    "clip-rank": (REFUSED, "ValueError: rank: expected 1, as in the default group of"),
    "clip-scale": (REFUSED, "ValueError: logit_scale: expected > 0, got -1.0"),
    "views": (REFUSED, "ValueError: out1: expected the shape of out0"),
    "unfit": ("ValueError: embeddings of one shape and type: expected the same on all ranks",) * 2,
    "columns": ("ValueError: len(embeddings): expected the same on all ranks",) * 2,
}


@pytest.mark.parametrize("name", ERRORS)
def test_ranks_that_do_not_fit(found, world, name):
    of_others, of_the_first = ERRORS[name]
    for rank, one in enumerate(found):
        start = (of_the_first if rank == 1 else of_others).format(world=world)
        assert one["errors"][name].startswith(start), one["errors"][name]
