"""The kernels of a path integral against the reference in fp64: on a GPU, or in the interpreter."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from simcse_fast.kernels.path_integral import reference, triton_kernels

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
pytestmark = [pytest.mark.gpu] if ON_GPU else []
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EPS = torch.finfo(torch.float32).eps
WIDTHS = [
    pytest.param(1, id="one-number"),
    pytest.param(127, id="below-a-block"),
    pytest.param(128, id="a-block"),
    pytest.param(384, id="three-quarters-of-a-block"),
    pytest.param(769, id="aligned-to-nothing"),
    pytest.param(4096, id="the-widest-that-is-held-whole"),
    pytest.param(4103, id="a-ragged-second-block"),
]
TOKENS = [
    pytest.param(1, id="one-token"),
    pytest.param(16, id="a-tile"),
    pytest.param(17, id="one-token-over-a-tile"),  # of narrow embeddings
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What is allocated and never written reads NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@dataclass(frozen=True)
class Case:
    """What both kernels take."""

    words: Tensor  # (N, S, H)
    baseline: Tensor  # (H,)
    moves: Tensor  # (N, S)
    sentence: Tensor  # (R,)
    alpha: Tensor  # (R,)
    gradient: Tensor  # (R, S, H)

    def points(self, module) -> Tensor:
        return module.path_points(self.words, self.baseline, self.moves, self.sentence, self.alpha)

    def contributions(self, module) -> Tensor:
        return module.path_contributions(
            self.gradient, self.words, self.baseline, self.moves, self.sentence
        )

    def exact(self) -> Case:
        """The same numbers in fp64."""
        fields = fields_of(self).values()
        return Case(*(x.double() if x.is_floating_point() else x for x in fields))


def fields_of(case: Case) -> dict[str, Tensor]:
    """Arguments by name, in order."""
    return {field.name: getattr(case, field.name) for field in dataclasses.fields(case)}


def random_case(*, sentences=3, rows=7, tokens=5, width=33, dtype=torch.float32, seed=0) -> Case:
    """Rows in any order, of some sentences several and of others none; a third of tokens stays."""
    g = torch.Generator().manual_seed(seed)
    case = Case(
        torch.randn(sentences, tokens, width, generator=g),
        torch.randn(width, generator=g),
        torch.rand(sentences, tokens, generator=g) < 2 / 3,
        torch.randint(sentences, (rows,), generator=g),
        torch.rand(rows, generator=g),
        torch.randn(rows, tokens, width, generator=g),
    )
    typed = {name: getattr(case, name).to(dtype) for name in ("words", "baseline", "gradient")}
    return Case(*(x.to(DEVICE) for x in (fields_of(case) | typed).values()))


def assert_points(case: Case, found: Tensor | None = None) -> None:
    """Tokens that stay, to the bit; others to one rounding of the type, after those of fp32."""
    found = case.points(triton_kernels) if found is None else found
    assert found.dtype == case.words.dtype
    exact = case.exact().points(reference)
    moving = case.moves[case.sentence].bool()
    assert found.shape == exact.shape
    assert torch.equal(found[~moving], case.words[case.sentence][~moving])
    sizes = case.exact().words.abs()[case.sentence] + case.exact().baseline.abs()  # |w| + |b|
    type_ = torch.finfo(case.words.dtype)
    half = torch.maximum(exact.abs() * type_.eps / 2, exact.new_tensor(type_.tiny * type_.eps / 2))
    # In fp32 the difference and its multiple are each rounded by half a unit of |w| + |b| at most,
    # and the sum by half a unit of itself, which is no larger.
    allowed = half + 1.5 * EPS * sizes
    assert ((found.double() - exact).abs() <= allowed)[moving].all()


def assert_contributions(case: Case, found: Tensor | None = None) -> None:
    """Tokens that stay, exactly 0; others to 8 units of fp32 of the sum of what is added up.

    The bound is 16 roundings: two of each product, the rest of a tree over 4096 numbers.
    """
    found = case.contributions(triton_kernels) if found is None else found
    assert found.dtype == torch.float32
    wide = case.exact()
    exact = wide.contributions(reference)
    moving = case.moves[case.sentence].bool()
    assert found.shape == exact.shape
    assert not found[~moving].any()  # of NaN, any() is true
    terms = (wide.gradient * (wide.words[case.sentence] - wide.baseline)).abs().sum(-1)
    assert ((found.double() - exact).abs() <= 8 * EPS * terms)[moving].all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_widths(width, dtype):
    case = random_case(width=width, dtype=dtype)
    assert_points(case)
    assert_contributions(case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [128, 384])  # sixteen tokens and four in a program
@pytest.mark.parametrize("tokens", TOKENS)
def test_lengths(tokens, width, dtype):
    case = random_case(tokens=tokens, width=width, dtype=dtype)
    assert_points(case)
    assert_contributions(case)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"rows": 1, "sentences": 1}, id="one-row"),
        pytest.param({"rows": 1, "sentences": 1, "tokens": 1, "width": 1}, id="one-number"),
        pytest.param({"rows": 0}, id="no-rows"),
        pytest.param({"tokens": 0}, id="no-tokens"),
        pytest.param({"width": 0}, id="no-width"),  # sums of nothing are 0
        pytest.param({"rows": 101, "sentences": 2}, id="many-nodes-of-a-sentence"),
        pytest.param({"rows": 2, "sentences": 11}, id="sentences-without-rows"),
    ],
)
def test_counts(sizes):
    case = random_case(**sizes)
    assert_points(case)
    assert_contributions(case)


def rows_together(x: Tensor) -> Tensor:
    """The same numbers, those of one token side by side and all else apart."""
    return torch.stack([x, x + 1], 1)[:, 0]


def columns_apart(x: Tensor) -> Tensor:
    """The same numbers, those of one token apart."""
    return torch.stack([x, x + 1], -1)[..., 0]


def transposed(x: Tensor) -> Tensor:
    """The same numbers, those of one column of all tokens side by side."""
    return x.mT.contiguous().mT if x.ndim > 1 else x


LAYOUTS = [
    pytest.param(rows_together, id="rows-together"),
    pytest.param(columns_apart, id="columns-apart"),
    pytest.param(transposed, id="transposed"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [33, 384], ids=["ragged", "aligned"])
def test_any_layout_of_any_argument(width, layout):
    case = random_case(width=width, tokens=9)
    case = dataclasses.replace(case, moves=case.moves.to(torch.uint8))
    other = Case(*(layout(x) for x in fields_of(case).values()))
    assert torch.equal(other.points(triton_kernels), case.points(triton_kernels))
    assert torch.equal(other.contributions(triton_kernels), case.contributions(triton_kernels))
    assert_points(other)
    assert_contributions(other)


def test_expanded_arguments():
    """A gradient that is the same for all rows, words that are the same for all tokens."""
    case = random_case(tokens=9, width=48)
    case = dataclasses.replace(
        case,
        words=case.words[:, :1].expand_as(case.words),
        alpha=case.alpha[:1].expand_as(case.alpha),
        gradient=case.gradient[:1, :1].expand_as(case.gradient),
    )
    assert_points(case)
    assert_contributions(case)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")], ids=str)
def test_what_stays_may_hold_anything(poison):
    """Padding need not be written by anyone: its words come back, and it contributes nothing."""
    case = random_case(tokens=9)
    stays = ~case.moves
    words = case.words.masked_fill(stays[..., None], poison)
    gradient = case.gradient.masked_fill(stays[case.sentence][..., None], poison)
    found = dataclasses.replace(case, words=words, gradient=gradient)
    assert torch.equal(found.contributions(triton_kernels), case.contributions(triton_kernels))
    points, staying = found.points(triton_kernels), stays[case.sentence]
    assert torch.equal(points[~staying], case.points(triton_kernels)[~staying])
    torch.testing.assert_close(
        points[staying], words[case.sentence][staying], rtol=0, atol=0, equal_nan=True
    )


def test_nothing_moves_from_a_baseline_that_is_not_finite():
    case = random_case()
    case = dataclasses.replace(
        case, moves=torch.zeros_like(case.moves), baseline=case.baseline * float("nan")
    )
    assert torch.equal(case.points(triton_kernels), case.words[case.sentence])
    assert not case.contributions(triton_kernels).any()


def test_a_gradient_that_is_not_finite_is_told_where_a_token_moves():
    case = random_case()
    case = dataclasses.replace(case, moves=torch.ones_like(case.moves))
    case.gradient[2, 3, 4] = float("nan")
    found = case.contributions(triton_kernels).isnan()
    assert found[2, 3]
    assert found.sum() == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_path_starts_at_its_baseline_and_ends_at_its_words(dtype):
    case = random_case(rows=2, sentences=1, dtype=dtype)
    case = dataclasses.replace(
        case, moves=torch.ones_like(case.moves), alpha=torch.tensor([0.0, 1.0], device=DEVICE)
    )
    start, end = case.points(triton_kernels)
    assert torch.equal(start, case.baseline.expand_as(start))
    # b + (w - b) in fp32 is w but for the last bit of the larger of the two.
    size = case.words[0].abs().float() + case.baseline.abs().float()
    allowed = torch.finfo(dtype).eps * end.abs().float() + EPS * size
    assert ((end.float() - case.words[0].float()).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_contributions_at_the_middle_complete_a_square(dtype):
    """|x|^2 / 2 has the gradient x, and one node integrates it: to (|w|^2 - |b|^2) / 2."""
    case = random_case(rows=3, sentences=3, width=96, dtype=dtype)
    case = dataclasses.replace(
        case,
        sentence=torch.arange(3, device=DEVICE),
        alpha=torch.full((3,), 0.5, device=DEVICE),
        moves=torch.ones_like(case.moves),
    )
    case = dataclasses.replace(case, gradient=case.points(triton_kernels))
    wide = case.exact()
    exact = (wide.words.square() - wide.baseline.square()).sum(-1) / 2
    # Each point is rounded by half a unit of its type.
    way = (wide.words - wide.baseline).abs()
    allowed = (torch.finfo(dtype).eps / 2 * wide.gradient.abs() * 1.01 * way).sum(-1)
    allowed += 8 * EPS * (wide.words.abs() + wide.baseline.abs()).square().sum(-1)
    found = case.contributions(triton_kernels)
    assert ((found.double() - exact).abs() <= allowed).all()


def test_products_that_fp16_does_not_hold():
    """Gradients of 1e4 over ways of 20: their sums pass fp16's range, and a float holds them."""
    case = random_case(width=384, dtype=torch.float16)
    case = dataclasses.replace(case, gradient=case.gradient * 1e4, words=case.words * 20)
    assert case.exact().contributions(reference).abs().max() > torch.finfo(torch.float16).max
    assert_contributions(case)


def test_the_baseline_and_the_gradient_may_be_of_a_wider_type():
    case = random_case(width=96, dtype=torch.float16)
    wider = torch.rand_like(case.gradient, dtype=torch.float32)
    case = dataclasses.replace(case, baseline=case.baseline.float() / 3, gradient=wider)
    assert_points(case)
    assert_contributions(case)


def test_rows_that_lie_beyond_32_bits(tmp_path):
    """Strides of 2^30 numbers: the third row begins at 2^31. The file has two pages, not 4 GiB."""
    case = random_case(rows=3, sentences=3, tokens=2, width=16, dtype=torch.float16)
    case = dataclasses.replace(case, sentence=torch.tensor([2, 0, 2], device=DEVICE))
    far = {}
    for name in ("words", "gradient"):
        near = getattr(case, name)
        count = (2 << 30) + near[0].numel()
        if ON_GPU:
            room = torch.empty(0, dtype=near.dtype, device=DEVICE).new_zeros(count)
        else:
            room = torch.from_file(
                str(tmp_path / name), shared=True, size=count, dtype=torch.float16
            )
        far[name] = room.as_strided(near.shape, (1 << 30, *near.stride()[1:])).copy_(near)
    distant = dataclasses.replace(case, **far)
    assert torch.equal(distant.points(triton_kernels), case.points(triton_kernels))
    assert torch.equal(distant.contributions(triton_kernels), case.contributions(triton_kernels))
    assert_contributions(case)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [384, 768, 1024, 769])
@pytest.mark.parametrize("tokens", [32, 61])
def test_a_batch_of_encoders_size_on_a_gpu(tokens, width, dtype):
    """16 nodes of 24 sentences; beside what it returns neither kernel allocates anything."""
    case = random_case(sentences=24, rows=24 * 16, tokens=tokens, width=width, dtype=dtype)
    for kernel, check in ((Case.points, assert_points), (Case.contributions, assert_contributions)):
        kernel(case, triton_kernels)  # what compiling allocates does not count
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = kernel(case, triton_kernels)
        room = found.numel() * found.element_size()
        # The allocator may leave a remainder of 1 MiB in a block; all points take 9 and more.
        assert torch.cuda.max_memory_allocated() - before <= room + (1 << 20)
        check(case, found)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_more_numbers_than_32_bits_count_on_a_gpu():
    rows, tokens, width = 5500, 512, 768  # 2.16e9 numbers
    room = 12 << 30
    if torch.cuda.mem_get_info()[0] < room:
        pytest.skip("needs 12 GiB of free memory")
    torch.use_deterministic_algorithms(False)  # filling the memory with NaN would take longer
    case = random_case(sentences=2, rows=3, tokens=tokens, width=width, dtype=torch.bfloat16)
    few = dataclasses.replace(case, sentence=torch.tensor([1, 0, 1], device=DEVICE))
    many = dataclasses.replace(
        few, sentence=few.sentence[:1].repeat(rows), alpha=few.alpha[:1].repeat(rows)
    )
    many.sentence[-3:], many.alpha[-3:] = few.sentence, few.alpha
    points = many.points(triton_kernels)
    assert_points(few, points[-3:])
    few = dataclasses.replace(few, gradient=points[-3:])
    many = dataclasses.replace(many, gradient=points)
    assert_contributions(few, many.contributions(triton_kernels)[-3:])
