"""info_nce with the keys of several processes, against one process that holds all rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

import distributed_cases as cases
import processes
from distributed_cases import Split
from info_nce_cases import textbook

from simcse_fast import backends

EVERYTHING = {
    "false_negative_margin": 0.1,
    "hardness": 0.7,
    "label_smoothing": 0.1,
    "hard_negative_weight": 2.0,
}
ALL = {"options": EVERYTHING, "hard": 2, "ids": True, "weight": True}
SYMMETRIC = {"symmetric": True}


def with_options(split: Split, **options) -> Split:
    return replace(split, options={**split.options, **options})


TWO = {
    "even": Split((5, 5)),
    "uneven": Split((7, 2)),
    "no-rows-on-the-last": Split((6, 0)),
    "no-rows-on-the-first": Split((0, 6)),
    "keys-without-rows": Split((6, 0), (6, 3)),
    "one-row-in-all": Split((1, 0)),
    "temperature-a-number": Split((4, 3), learned=False),
    "labels": Split((4, 5), (6, 2), labels=True),
    "hard-negatives": Split((4, 3), hard=2),
    "ids": Split((6, 3), ids=True),
    "margin": Split((6, 3), options={"false_negative_margin": -0.2}),
    "hardness": Split((4, 3), hard=1, options={"hardness": 0.9}),
    "smoothing": Split((4, 3), options={"label_smoothing": 0.2}),
    "weight": Split((4, 3), weight=True),
    "dot-product": Split((4, 3), options={"normalize": False}),
    "sum": Split((4, 3), weight=True, options={"reduction": "sum"}),
    "none": Split((4, 3), weight=True, options={"reduction": "none"}),
    "none-no-rows": Split((0, 3), options={"reduction": "none"}),
    "everything": Split((4, 3), (6, 5), labels=True, **ALL),
    "symmetric": Split((4, 4), options=SYMMETRIC),
    "symmetric-uneven": Split((5, 2), options=SYMMETRIC),
    "symmetric-no-rows": Split((5, 0), options=SYMMETRIC),
    "symmetric-none": Split((5, 2), weight=True, options={**SYMMETRIC, "reduction": "none"}),
    "symmetric-everything": with_options(Split((5, 2), **ALL), **SYMMETRIC),
    "several-panels": Split((150, 170), width=24),  # more than the native code's small batch
}
FOUR = {
    "even": Split((3, 3, 3, 3)),
    "uneven": Split((5, 0, 2, 4)),
    "everything": Split((4, 0, 1, 3), (4, 2, 1, 5), labels=True, **ALL),
    "symmetric-everything": with_options(Split((5, 2, 0, 1), **ALL), **SYMMETRIC),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
WITHIN = {torch.float64: 1e-11, torch.float32: 1e-6}
NARROW = ("even", "everything", "symmetric-everything")
BACKENDS = [name for name, status in backends().items() if status.available]
FEW = ("uneven", "everything", "symmetric-everything")


def worlds() -> dict[int, dict[str, Split]]:
    """World size -> all its problems, by name, type and back-end."""
    two = {f"{name}-float64": replace(x, dtype=torch.float64) for name, x in TWO.items()}
    two |= {f"{name}-float32": x for name, x in TWO.items()}
    for name in NARROW:
        for dtype in DTYPES[2:]:
            two[f"{name}-{dtype}".replace("torch.", "")] = replace(TWO[name], dtype=dtype)
    for backend in BACKENDS:
        for name in FEW:
            two[f"{name}-{backend}"] = with_options(TWO[name], backend=backend)
    return {2: two, 4: FOUR}


WORLDS = worlds()
NAMES = [
    pytest.param(world, name, id=f"{world}-ranks-{name}")
    for world, splits in WORLDS.items()
    for name in splits
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """World size -> what its ranks found; started once for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    return {
        world: processes.run(world, cases.on_ranks, folder / str(world), splits)
        for world, splits in WORLDS.items()
    }


@pytest.mark.parametrize(("world", "name"), NAMES)
def test_all_ranks_together_are_one_process(found, world, name):
    split = WORLDS[world][name]
    ours, exact = cases.joined(split, [one[name] for one in found[world]]), cases.exact(split)
    assert ours.keys() == exact.keys()
    errors = {key: cases.error(ours[key], exact[key]) for key in exact}
    if split.dtype in WITHIN:
        assert max(errors.values()) < WITHIN[split.dtype], errors
        return
    eager = cases.evaluate(split, cases.whole(split), function=textbook)
    slack = 4 * torch.finfo(torch.float32).eps
    for key, error in errors.items():  # in 16 bits: no worse than plain torch in one process
        assert error <= cases.error(eager[key].double(), exact[key]) + slack, (key, errors)


GPUS = torch.cuda.device_count() if torch.distributed.is_nccl_available() else 0
NCCL = [
    pytest.param(
        *(world, "cuda", "nccl"),
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(world > GPUS, reason=f"needs {world} GPUs and NCCL, has {GPUS}"),
        ],
        id=f"{world}-nccl",
    )
    for world in (1, 2)
]
GLOO = [pytest.param(world, "cpu", "gloo", id=f"{world}-gloo") for world in (1, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("world", "device", "backend"), GLOO + NCCL)
def test_the_gather_and_its_gradient(tmp_path, world, device, backend, dtype):
    ranks = processes.run(world, cases.gathered, tmp_path, device, dtype, backend=backend)
    rows = [torch.arange(6.0 * (rank + 1)).view(-1, 3) for rank in range(world)]
    for rank, one in enumerate(ranks):
        for name in ("first", "second"):
            assert torch.equal(one[name], torch.cat(rows))  # fp32, also from bf16
        assert torch.equal(one["of_first"], torch.full_like(rows[rank], world).to(dtype))
        weights = world * (world + 1) / 2
        assert torch.equal(one["of_second"], torch.full_like(rows[rank], weights).to(dtype))
        assert one["total"] == world * torch.cat(rows).sum()


@pytest.mark.gpu
@pytest.mark.skipif(GPUS < 2, reason=f"needs 2 GPUs and NCCL, has {GPUS}")
def test_all_gpus_together_are_one_process(tmp_path):
    names = ("uneven-float32", "no-rows-on-the-last-float32", "everything-float32")
    names += ("symmetric-everything-float32", "symmetric-everything-bfloat16")
    splits = {name: WORLDS[2][name] for name in names}
    ranks = processes.run(2, cases.on_ranks, tmp_path, splits, "cuda", backend="nccl")
    for name, split in splits.items():
        ours, exact = cases.joined(split, [one[name] for one in ranks]), cases.exact(split)
        errors = {key: cases.error(ours[key], exact[key]) for key in exact}
        assert max(errors.values()) < (1e-6 if split.dtype == torch.float32 else 1e-2), errors
