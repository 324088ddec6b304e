"""Scores, masks and removal of units, each against what it says it does, written out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("sentence_transformers", reason="needs the extra sparsify")

from sparsity_cases import FAMILIES, TEXTS, bert, pair, pairs, transformer
from transformers import AutoModel

from simcse_fast.errors import InputError
from simcse_fast.kernels.uniformity import reference
from simcse_fast.sparsity import embedder as embedders
from simcse_fast.sparsity import factors as unit_factors
from simcse_fast.sparsity.ablation import Unit, ablate
from simcse_fast.sparsity.calibration import calibration_of
from simcse_fast.sparsity.embedder import Embedder
from simcse_fast.sparsity.layouts import LAYOUTS, units_of
from simcse_fast.sparsity.masks import masked
from simcse_fast.sparsity.removal import remove, width_of
from simcse_fast.sparsity.scores import LOSSES, score
from simcse_fast.sparsity.selection import Selection, magnitude_scores, select
from simcse_fast.sparsity.unstructured import Unstructured, matrices

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tmp_path):
    return bert(tmp_path / "bert").double().eval()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Few sentences make several batches, the last one shorter."""
    monkeypatch.setattr(embedders.batches, "__defaults__", (7,))
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)  # fp64 stays


def random_selection(units, seed=0) -> Selection:
    g = torch.Generator().manual_seed(seed)
    heads = torch.rand(len(units.layers), units.heads, generator=g) > 0.4
    return Selection(heads, torch.rand(len(units.layers), units.neurons, generator=g) > 0.5)


def losses(embeddings, data):
    x, y = (F.normalize(embeddings[rows], dim=-1) for rows in (data.first, data.second))
    return {
        "alignment": (x - y).square().sum(1).mean(),
        "uniformity": reference.uniformity(embeddings, 2.0, True),
    }


def whole_gradients(embedder, units, data):
    """One graph over the whole set, one factor for all sentences."""
    sizes = {"heads": units.heads, "neurons": units.neurons}
    factors = {
        kind: [torch.ones(size, dtype=torch.float64, requires_grad=True) for _ in units.layers]
        for kind, size in sizes.items()
    }
    with masked(units, factors["heads"], factors["neurons"]):
        found = losses(torch.cat([embedder([text]) for text in data.texts]), data)
    leaves = [*factors["heads"], *factors["neurons"]]
    layers = len(units.layers)
    gradients = {}
    for name, value in found.items():
        flat = torch.autograd.grad(value, leaves, retain_graph=True)
        gradients["heads", name] = torch.stack(flat[:layers])
        gradients["neurons", name] = torch.stack(flat[layers:])
    return gradients


def test_scores_are_the_gradients_of_the_whole_set(model):
    data, _ = calibration_of(pairs(20), 4)
    embedder = Embedder(model)
    units = units_of(embedder.transformer)
    scores = score(embedder, units, data, progress=False)
    wanted = whole_gradients(embedder, units, data)
    for kind, loss in itertools.product(("heads", "neurons"), LOSSES):
        found = getattr(scores, kind)[loss]
        exact = wanted[kind, loss]
        torch.testing.assert_close(found.total, exact, rtol=1e-4, atol=1e-5 * exact.abs().max())
        assert (found.absolute >= found.total.abs() - 1e-12).all()
    combined = scores.combined("neurons", 0.25, "total")
    parts = [scores.neurons[loss].total.abs() for loss in LOSSES]
    unit = [part / (part.norm(dim=1, keepdim=True) + 1e-7) for part in parts]
    torch.testing.assert_close(combined, 0.25 * unit[0] + 0.75 * unit[1])


def test_sentences_shares_do_not_depend_on_batches(model, monkeypatch):
    data, _ = calibration_of(pairs(20), 4)
    embedder = Embedder(model)
    units = units_of(embedder.transformer)
    many = score(embedder, units, data, progress=False)
    monkeypatch.setattr(embedders.batches, "__defaults__", (1,))
    monkeypatch.setattr(unit_factors, "NUMBERS", 1)
    one = score(embedder, units, data, progress=False)
    for loss in LOSSES:
        largest = one.neurons[loss].absolute.max()
        torch.testing.assert_close(
            many.neurons[loss].absolute, one.neurons[loss].absolute, rtol=1e-5, atol=1e-6 * largest
        )


def test_sentences_in_one_sequence_are_refused(model):
    units = units_of(Embedder(model).transformer)
    down = units.layers[0].down
    with unit_factors.factors(units, 2), pytest.raises(InputError, match="without unpad_inputs"):
        down(torch.zeros(5, units.neurons).double())


def test_scoring_leaves_the_model_as_it_was(model):
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data, _ = calibration_of(pairs(20), 4)
    embedder = Embedder(model)
    score(embedder, units_of(embedder.transformer), data, progress=False)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_ablation_is_the_difference_that_a_mask_makes(model):
    data, _ = calibration_of(pairs(20), 4)
    embedder = Embedder(model)
    units = units_of(embedder.transformer)
    chosen = [
        Unit("neurons", 1, 5),
        Unit("heads", 0, 1),
        Unit("heads", 1, 0),
        Unit("neurons", 0, 3),
    ]
    found = ablate(embedder, units, data, chosen)
    with torch.no_grad():
        dense = losses(embedder.all(data.texts), data)
        for unit, change in zip(chosen, found, strict=True):
            mask = torch.ones(units.heads if unit.kind == "heads" else units.neurons)
            mask[unit.index] = 0
            masks = {kind: [None] * len(units.layers) for kind in ("heads", "neurons")}
            masks[unit.kind][unit.layer] = mask
            with masked(units, masks["heads"], masks["neurons"]):
                sparse = losses(embedder.all(data.texts), data)
            for loss in LOSSES:
                wanted = float(sparse[loss] - dense[loss])
                assert change[loss] == pytest.approx(wanted, rel=1e-3, abs=1e-6)
                assert abs(wanted) > 1e-5
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_masked_can_be_removed_and_loaded_by_transformers_alone(family, tmp_path):
    model, tokenizer = pair(tmp_path / "words", family)
    embedder = Embedder((model, tokenizer))
    units = units_of(model)
    selection = random_selection(units)
    dense = embedder.all(TEXTS)
    with masked(units, list(selection.heads.float()), list(selection.neurons.float())):
        wanted = embedder.all(TEXTS)
    remove(model, selection)
    torch.testing.assert_close(embedder.all(TEXTS), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - dense).abs().max() > 1e-3
    assert units_of(model).neurons == width_of(selection) < 32
    model.save_pretrained(tmp_path / "small")
    kind = AutoModel if family != "T5" else type(model)
    loaded = kind.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(
        Embedder((loaded.eval(), tokenizer)).all(TEXTS), wanted, rtol=1e-5, atol=1e-5
    )


def test_what_is_removed_stays_away_in_training():
    model = transformer("Bert")
    units = units_of(model)
    selection = random_selection(units)
    remove(model, selection)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for seed in range(3):
        ids = torch.randint(5, 200, (4, 9), generator=torch.Generator().manual_seed(seed))
        model(input_ids=ids).last_hidden_state.sin().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for layer, heads, width in zip(units_of(model).layers, selection.heads, selection.widths):  # noqa: B905
        gone = (~heads).repeat_interleave(units.depth)
        assert not layer.value.weight[gone].any()
        assert not layer.out.weight[:, gone].any()
        assert layer.out.weight[:, ~gone].all()
        assert not layer.up[0].weight[width:].any()
        assert not layer.down.weight[:, width:].any()


def test_lowest_scores_go_first():
    model = transformer("Bert")
    units = units_of(model)
    heads = torch.tensor([[1.0, 5, 3, 8], [2, 6, 4, 7]])
    neurons = torch.arange(64.0).view(2, 32)  # all of the first layer lie below the second's
    found = select({"heads": heads, "neurons": neurons}, 0.25, units)
    assert found.heads.tolist() == [[False, True, True, True], [False, True, True, True]]
    assert found.widths == [16, 32]
    assert not found.neurons[0, :16].any()
    assert found.removed == {"heads": 0.25, "neurons": 0.25}
    each = select({"neurons": neurons}, 0.25, units, "layer")
    assert each.widths == [24, 24]
    assert each.heads.all()
    assert select({"neurons": neurons}, 0.2, units).widths == [19, 32]
    rounded = [select({"neurons": neurons}, share, units, "layer").widths for share in (0.2, 0.99)]
    assert rounded == [[24, 24], [8, 8]]  # to eights, of which one stays
    assert width_of(select({"neurons": neurons}, 0.6, units)) == 32
    assert width_of(Selection(heads > 0, neurons > 61)) == 8
    assert select({"heads": heads, "neurons": neurons}, 0.0, units).removed["heads"] == 0
    ties = select({"heads": torch.ones(2, 4)}, 0.25, units)
    assert ties.heads.tolist() == [[False, False, True, True], [True] * 4]


def test_magnitudes_are_lengths_of_weights():
    units = units_of(transformer("Bert"))
    found = magnitude_scores(units)
    layer = units.layers[1]
    rows, columns = layer.up[0].weight.double(), layer.down.weight.double()
    wanted = torch.stack([torch.cat([rows[n], columns[:, n]]).norm() for n in range(32)])
    torch.testing.assert_close(found["neurons"][1], wanted / wanted.norm())
    head = slice(4, 8)
    length = torch.cat([layer.value.weight[head].flatten(), layer.out.weight[:, head].flatten()])
    ratio = found["heads"][1, 1] / found["heads"][1, 0]
    first = torch.cat([layer.value.weight[:4].flatten(), layer.out.weight[:, :4].flatten()])
    assert ratio.item() == pytest.approx((length.norm() / first.norm()).item(), rel=1e-5)


def test_single_weights_are_scored_by_weight_times_gradient(model):
    data, _ = calibration_of(pairs(20), 4)
    embedder = Embedder(model)
    method = Unstructured(embedder, None)
    scores = method.scores(data, 0.3, progress=False)
    embeddings = torch.cat([embedder([text]) for text in data.texts])
    shares = {"alignment": 0.3, "uniformity": 0.7}
    wanted = [torch.zeros_like(weight) for weight in method.matrices]
    for loss, value in losses(embeddings, data).items():
        for place, gradient in enumerate(
            torch.autograd.grad(value, method.matrices, retain_graph=True)
        ):
            each = (method.matrices[place].detach() * gradient).abs()
            wanted[place] += shares[loss] * each / (each.norm() + 1e-7)
    assert len(wanted) == 12  # six matrices in each of two layers
    for found, exact in zip(scores, wanted, strict=True):
        torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-5 * exact.max())


def test_single_weights_go_come_back_and_stay_away(model):
    embedder = Embedder(model)
    method = Unstructured(embedder, None)
    selection = method.select(method.magnitudes(), 0.3)
    count = sum(mask.numel() for mask in selection)
    assert sum(int((~mask).sum()) for mask in selection) == round(0.3 * count)
    before = embedder.all(TEXTS)
    with method.without(selection):
        inside = embedder.all(TEXTS)
    assert torch.equal(embedder.all(TEXTS), before)
    method.apply(embedder.transformer, selection)
    torch.testing.assert_close(embedder.all(TEXTS), inside)
    assert (inside - before).abs().max() > 1e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    embedder(TEXTS).sin().sum().backward()
    optimizer.step()
    for weight, mask in zip(matrices(embedder.transformer, None), selection, strict=True):
        assert not weight[~mask].any()
        assert weight[mask].all()


def test_every_known_family_is_tried():
    names = {type(transformer(family)).__name__ for family in FAMILIES}
    assert names == set(LAYOUTS)


def test_random_orders_differ_by_seed_alone(model):
    method = Unstructured(Embedder(model), None)
    one, same, other = (method.random(seed)[0].numpy() for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
