"""Products with a softmax in their epilogue, in CUDA C++, against exponentials written out."""

from __future__ import annotations

import dataclasses
import math

import emulation
import pytest
import torch

from simcse_fast.kernels import native
from simcse_fast.kernels.infonce import tiles
from simcse_fast.kernels.infonce.terms import Own, Segment

if reason := emulation.problem():
    pytest.skip(reason, allow_module_level=True)

from simcse_fast.kernels.infonce import cuda, triton_kernels
from simcse_fast.kernels.infonce.similarities import Similarities

DEVICE = emulation.DEVICE
pytestmark = emulation.MARKS
LOG2E = math.log2(math.e)
ROUNDED = 2**-8  # the largest relative error of a rounding to bf16
# Of an exponential: a similarity's sum in fp32 may be 2^-21 off, 22 times that in its logit.
SUMMED = 1e-5
SIZES = [  # rows, columns, depth; not their product with the options, for time
    pytest.param((1, 1, 64), id="one"),
    pytest.param((64, 255, 128), id="a-consumers-rows"),
    pytest.param((65, 257, 256), id="one-row-and-column-over"),  # as deep as all stages
    pytest.param((128, 64, 320), id="a-blocks-rows"),  # one step deeper
    pytest.param((129, 512, 384), id="one-row-over-a-block"),
    pytest.param((256, 300, 768), id="a-clusters-rows"),
    pytest.param((523, 700, 192), id="several-tiles-each"),
]
ROWS, COLUMNS, DEPTH = 200, 300, 320  # two tiles, both ragged
SUMS = [pytest.param(True, False, id="panel"), pytest.param(False, False, id="rows")]
SUMS += [pytest.param(False, True, id="rows-and-columns")]
OPTIONS = {
    "plain": {},
    "hardness": {"hardness": 3.0},
    "kept": {"own": Own.KEPT, "own_hardness": 2.0},
    "left-out": {"own": Own.LEFT_OUT},
    "ids": {"ids": True},
    "margin": {"margin": 0.02},
    "no-scale": {"scale": 0.0},
    "everything": {"ids": True, "margin": 0.01, "hardness": 2.0},
}


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    yield from emulation.machine(monkeypatch)


@pytest.fixture
def no_triton(monkeypatch):
    """The products that are tested are those in CUDA C++."""
    for name in ("sums", "gradients"):
        monkeypatch.setattr(triton_kernels, name, None)


def apart(positive: torch.Tensor, similarity: torch.Tensor, margin: float) -> torch.Tensor:
    """Raised until no similarity lies where a rounding decides."""
    near = torch.ones_like(positive).bool()
    while near.any():
        near = (similarity - positive[:, None] - margin).abs().amin(1) < 2e-6
        positive = positive + 5e-6 * near
    return positive


def problem(
    rows: int,
    columns: int,
    depth: int,
    *,
    ids: bool = False,
    margin: float | None = None,
    own: Own = Own.POSITIVE,
    hardness: float = 0.0,
    own_hardness: float = 0.0,
    scale: float = 20.0,
) -> Similarities:
    """Unit rows whose columns are noisy copies, at an offset of 3."""
    g = torch.Generator().manual_seed(rows + columns)
    key = torch.randn(columns, depth, generator=g)
    labels = torch.randperm(rows, generator=g) % columns
    query = key[labels] + 2 * torch.randn(rows, depth, generator=g)
    unit = torch.nn.functional.normalize
    query, key = (unit(x, dim=-1).bfloat16().to(DEVICE) for x in (query, key))
    labels = labels.to(DEVICE)
    similarity = query.double() @ key.double().T
    positive = similarity[torch.arange(rows), labels]
    back = similarity.new_full((columns,), 0.3)
    back[labels] = positive
    if margin is not None:
        positive = apart(positive, similarity, margin)
        back = apart(back, similarity.T, margin)
    return Similarities(
        query,
        key,
        labels,
        torch.tensor([scale, 3.0], dtype=torch.float64, device=DEVICE),
        Segment(0, columns, own, hardness, own_hardness),
        margin=0.0 if margin is None else margin,
        positive=None if margin is None else positive.float(),
        opposite=None if margin is None else back.float(),
        query_ids=torch.arange(rows, device=DEVICE) % 7 if ids else None,
        key_ids=torch.arange(columns, device=DEVICE) % 5 if ids else None,
    )


def exponentials(s: Similarities) -> tuple[torch.Tensor, torch.Tensor]:
    """Written out in double: exp2 of rows' logits and of columns', 0 where one is left out."""
    similarity = s.query.double() @ s.key.double().T
    own = torch.nn.functional.one_hot(s.labels, len(s.key)).bool()
    scale, offset = s.numbers.tolist()
    slopes = (scale + s.segment.hardness, scale + s.segment.own_hardness)
    kept = own if s.segment.own == Own.KEPT else torch.zeros_like(own)
    e = (similarity * torch.where(kept, slopes[1], slopes[0]) * LOG2E - offset).exp2()
    out = own & ~kept
    if s.query_ids is not None and s.key_ids is not None:
        out = out | (s.query_ids[:, None] == s.key_ids)
    e = e.masked_fill(out, 0)
    if s.positive is None or s.opposite is None:
        return e, e
    near = [similarity > x.double() + s.margin for x in (s.positive[:, None], s.opposite)]
    return e.masked_fill(near[0], 0), e.masked_fill(near[1], 0)


def new_panel(s: Similarities) -> tuple[torch.Tensor, torch.Tensor]:
    """A panel as wide as the plan's, and the memory it is a part of."""
    width = -(-len(s.key) // 64) * 64
    whole = torch.full((len(s.query) + 2, width + 64), -7.0, dtype=torch.bfloat16, device=DEVICE)
    return whole[1:-1, :width], whole


def assert_panel(
    s: Similarities, panel: torch.Tensor, whole: torch.Tensor, exact: torch.Tensor
) -> None:
    """Each number is rounded once, padding is 0, and nothing else was written."""
    found, columns = panel.double(), len(s.key)
    assert bool(((found[:, :columns] - exact).abs() <= (ROUNDED + SUMMED) * exact.abs()).all())
    assert not panel[:, columns:].any()
    panel.fill_(-7.0)
    assert bool((whole == -7.0).all())


def assert_sums(found: torch.Tensor, exact: torch.Tensor) -> None:
    torch.testing.assert_close(found[0].double().sum(0), exact, rtol=SUMMED, atol=1e-9)


@pytest.mark.usefixtures("no_triton")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(("stored", "columns"), SUMS)
def test_sums_with_options(stored, columns, options):
    check_sums(problem(ROWS, COLUMNS, DEPTH, **options), stored, columns)


@pytest.mark.usefixtures("no_triton")
@pytest.mark.parametrize(("stored", "columns"), SUMS)
@pytest.mark.parametrize("sizes", SIZES)
def test_sums_of_sizes(sizes, stored, columns):
    check_sums(problem(*sizes), stored, columns)


def check_sums(s: Similarities, stored: bool, columns: bool) -> None:
    """Against all exponentials written out."""
    panel, whole = new_panel(s) if stored else (None, None)
    of_row, of_column = exponentials(s)
    by_row, by_column = cuda.sums(
        s, panel, columns=columns, online=False, smoothing=False, flag=None
    )
    assert_sums(by_row, of_row.sum(1))
    if columns:
        assert_sums(by_column, of_column.sum(0))
    if stored:
        assert_panel(s, panel, whole, of_row)


DIRECTIONS = pytest.mark.parametrize("columns", [False, True], ids=["rows", "rows-and-columns"])


@pytest.mark.usefixtures("no_triton")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@DIRECTIONS
def test_gradients_with_options(columns, options):
    check_gradients(problem(ROWS, COLUMNS, DEPTH, **options), columns, flags=True)


@pytest.mark.usefixtures("no_triton")
@DIRECTIONS
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_of_sizes(sizes, columns):
    check_gradients(problem(*sizes), columns)


def check_gradients(s: Similarities, columns: bool, *, flags: bool = False) -> None:
    """Against exponentials times their factors; with a flag that is set, and one that is not."""
    rows, width = len(s.query), len(s.key)
    g = torch.Generator().manual_seed(0)
    state, column_state = (torch.rand(4, n, generator=g).to(DEVICE) for n in (rows, width))
    own = -torch.rand(rows, generator=g).to(DEVICE)
    of_row, of_column = exponentials(s)
    exact = of_row * state[1, :, None]
    if columns:
        exact = exact + of_column * column_state[1]
    if s.segment.own == Own.POSITIVE:
        exact[torch.arange(rows), s.labels] = own.double()
    for expected, flag in ((1, 1), (1, 0)) if flags else ((0, None),):
        panel, whole = new_panel(s)
        given = None if flag is None else torch.tensor(flag, dtype=torch.int32, device=DEVICE)
        more = {"gain": None, "online": False, "smoothing": False}
        cuda.gradients(
            *(s, panel, state, column_state if columns else None, own),
            **more, flag=given, expected=expected,
        )  # fmt: skip
        if flag == 0:  # not what was expected: nothing is done
            assert bool((whole == -7.0).all())
        else:
            assert_panel(s, panel, whole, exact)


@pytest.mark.parametrize("sizes", SIZES)
def test_sums_are_written_and_nothing_beside_them(sizes):
    s = problem(*sizes)
    rows, columns, _ = sizes
    shapes = (-(-columns // 256), rows), (-(-rows // 64), columns)
    whole = [torch.full((64 + x * y + 64,), -7.0, device=DEVICE) for x, y in shapes]
    inside = [x[64:-64] for x in whole]
    out = native.InfonceSums(*(x.data_ptr() for x in inside))
    cuda._launch(native.load_cuda().sf_infonce_sums_cuda, cuda._products(s, None, None, 0), out)
    for found, shape, dim in zip(inside, shapes, (1, 0), strict=True):
        assert_sums(found.view(1, *shape), exponentials(s)[0].sum(dim))
        found.fill_(-7.0)
    assert all(bool((x == -7.0).all()) for x in whole)


@pytest.mark.usefixtures("no_triton")
@pytest.mark.skipif(emulation.REAL, reason="a GPU chooses its own order")
@pytest.mark.parametrize("lead", [0, 1, 5, 7, 9])
def test_the_order_of_events_changes_no_bit(lead, monkeypatch):
    monkeypatch.setattr(tiles, "LEAD", lead)  # 9 is more than the stages hold, and is taken as 7
    s = problem(300, 900, 448)
    found = []
    for seed in range(6):
        emulation.library().sf_emulate(seed, 1 + seed % 3)
        panel, _ = new_panel(s)
        sums, _ = cuda.sums(s, panel, columns=False, online=False, smoothing=False, flag=None)
        found.append((sums, panel))
    for sums, panel in found[1:]:
        assert torch.equal(sums, found[0][0])
        assert torch.equal(panel, found[0][1])
    assert_sums(found[0][0], exponentials(s)[0].sum(1))


@pytest.mark.usefixtures("no_triton")
@pytest.mark.skipif(emulation.REAL, reason="the library is as it was built")
@pytest.mark.parametrize("flag", ["-DSF_STAGE_DEPTH=64", "-DSF_CLUSTER=1"])
def test_other_ways_to_divide_the_work(flag, tmp_path, monkeypatch):
    """Built for comparisons, and as right as the one that is shipped."""
    library = emulation.build(tmp_path / "other.so", emulation.CSRC / "cuda", "-O1", flag)
    monkeypatch.setattr(native, "load_cuda", lambda: library)
    for columns in (False, True):
        check_sums(problem(300, 900, 448, **OPTIONS["everything"]), not columns, columns)
        check_gradients(problem(300, 900, 448), columns)


FAULTS = {
    "products-not-waited-for": [
        ("infonce_tiles.h", "  hopper::wait_products<0>(sum);\n  let_go", "  let_go")
    ],
    "a-stage-let-go-of-too-early": [
        ("infonce_tiles.h", "hopper::wait_products<1>(sum);", "hopper::wait_products<2>(sum);")
    ],
    "a-stage-filled-before-it-is-empty": [
        ("infonce_tiles.h", "at.parity ^ 1);", "at.parity);")
    ],
    "one-block-not-told": [
        ("infonce_tiles.h", "if (lane < kBlocks) hopper", "if (lane < 1) hopper")
    ],
    "too-few-bytes-expected": [
        ("infonce_tiles.h", "arrive_expecting(barrier, kStageBytes)",
         "arrive_expecting(barrier, kQueryBytes)")
    ],
    "ahead-by-more-than-the-stages": [
        ("infonce.cu", "std::min(in.lead, kStages - 1)", "kStages + 1")
    ],
    "a-slice-overwritten": [
        ("epilogue.h", "hopper::wait_stores<kSlices - 1>()", "hopper::wait_stores<kSlices + 1>()")
    ],
    "stores-not-waited-for": [
        ("infonce_tiles.h", "hopper::wait_stores<0>()", "hopper::wait_stores<9>()")
    ],
    "writes-not-published": [("epilogue.h", "    hopper::publish_writes();\n", "")],
    "a-slice-stored-before-it-is-filled": [
        ("epilogue.h", "hopper::sync(seat.barrier(), kGroup);  // all of it is filled", "")
    ],
    "factors-read-too-early": [
        ("logits.h", "  }\n  hopper::sync(seat.barrier(), kGroup);\n}", "  }\n}")
    ],
    "factors-written-too-early": [
        ("logits.h", "  hopper::sync(seat.barrier(), kGroup);  // the last tile has left it\n", "")
    ],
    "sums-without-a-fence": [("infonce_tiles.h", "    hopper::begin_products();\n", "")],
    "another-swizzle": [("tile_maps.h", "address >> 3 & 0x70", "address >> 3 & 0x30")],
    "blocks-that-leave": [
        ("infonce_tiles.h", "  hopper::cluster_sync();  // nobody leaves", "  // nobody leaves")
    ],
}  # fmt: skip


@pytest.mark.usefixtures("no_triton")
@pytest.mark.skipif(emulation.REAL, reason="it is the emulation that is tested")
@pytest.mark.parametrize("fault", FAULTS)
def test_the_emulation_notices(fault, tmp_path, monkeypatch):
    """By a report or by wrong numbers, from one order of events in twenty or more."""
    library = emulation.changed(tmp_path, FAULTS[fault])
    monkeypatch.setattr(native, "load_cuda", lambda: library)
    s = problem(300, 900, 448)
    for seed in range(20):
        library.sf_emulate(seed, 2)
        try:
            check_gradients(s, columns=True)
        except (RuntimeError, AssertionError):
            return
    pytest.fail("nothing was noticed")


@pytest.mark.parametrize(
    ("field", "value"),
    [("depth", 100), ("rows", -1), ("columns", 1000), ("query", None), ("stride", 257)],
)
def test_the_library_refuses_what_it_cannot_do(field, value):
    s = problem(64, 256, 128)
    panel, _ = new_panel(s)
    products = cuda._products(s, panel, None, 0)
    setattr(products, field, value)
    sums = torch.empty(1, 64, device=DEVICE)
    with pytest.raises(RuntimeError, match="sf_infonce_sums_cuda: the native library refused"):
        cuda._launch(
            native.load_cuda().sf_infonce_sums_cuda, products, native.InfonceSums(sums.data_ptr())
        )


def test_what_the_kernel_does_not_take_is_tritons(monkeypatch):
    """fp16, short labels, rows that are not aligned, fewer tiles than a device has clusters."""
    s = problem(64, 256, 128)
    assert cuda._fits(s, None)
    assert not cuda._fits(dataclasses.replace(s, query=s.query.half()), None)
    assert not cuda._fits(dataclasses.replace(s, labels=s.labels.int()), None)
    assert not cuda._fits(s, torch.empty(64, 257, dtype=torch.bfloat16)[:, :256])
    monkeypatch.setattr(tiles, "processors", lambda _: 132)
    assert not cuda._fits(s, None)
