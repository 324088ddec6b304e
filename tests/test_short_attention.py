"""Attention of short sentences on a CPU: the native kernel, and when it takes torch's place."""

from dataclasses import dataclass

import pytest
import torch
from attribution_models import TEXTS, pair_of
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from simcse_fast import integrated_gradients
from simcse_fast.attribution import short_attention
from simcse_fast.attribution.short_attention import ShortAttention
from simcse_fast.kernels.attention import reference
from simcse_fast.kernels.native import PATH

needs_library = pytest.mark.skipif(not PATH.exists(), reason="the native library was not built")
LENGTHS = [
    pytest.param(1, id="one-token"),
    pytest.param(3, id="below-a-tile"),
    pytest.param(14, id="below-a-vector"),
    pytest.param(16, id="a-vector"),
    pytest.param(17, id="one-over-a-vector"),
    pytest.param(33, id="one-over-two-vectors"),
    pytest.param(128, id="longest"),
]
HEADS = [
    pytest.param(3, 16, id="narrowest"),
    pytest.param(12, 32, id="MiniLM"),
    pytest.param(2, 48, id="three-vectors"),
    pytest.param(1, 128, id="widest"),
]


@pytest.fixture(autouse=True)
def poisoned_memory():
    """What is allocated and never written reads NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def calls(monkeypatch):
    """How often the native kernel was called."""
    made = []
    kernel = short_attention.attention_kernel()
    forward = kernel.forward
    monkeypatch.setattr(
        kernel, "forward", lambda *args, **options: (made.append(1), forward(*args, **options))[1]
    )
    return made


@dataclass(frozen=True)
class Case:
    """Self-attention and a gradient of what comes out."""

    query: Tensor
    key: Tensor
    value: Tensor
    upstream: Tensor
    mask: Tensor | None = None

    def results(self, attend, dtype=torch.float32):
        """Output, and the gradients of query, key and value."""
        inputs = [x.detach().to(dtype).requires_grad_() for x in (self.query, self.key, self.value)]
        out = attend(*inputs, self.mask)
        return [out, *torch.autograd.grad(out, inputs, self.upstream.to(dtype))]


def random_case(batch, heads, length, depth, size=1.0, mask=None):
    made = torch.Generator().manual_seed(length * depth)
    draw = [torch.randn(batch, length, heads * depth, generator=made) for _ in range(4)]
    parts = [x.view(batch, length, heads, depth).transpose(1, 2) for x in draw]
    sees = torch.rand(batch, 1, length, length, generator=made) < 0.7
    sees |= torch.eye(length, dtype=torch.bool)
    added = torch.randn(sees.shape, generator=made).masked_fill(~sees, -torch.inf)
    return Case(size * parts[0], *parts[1:], {None: None, "bool": sees, "float": added}[mask])


def ours(query, key, value, mask=None, **options):
    with ShortAttention():
        return scaled_dot_product_attention(query, key, value, mask, **options)


def exactly(query, key, value, mask=None):
    return reference.attention(query, key, value, mask, query.shape[3] ** -0.5)


def worst(found, exact):
    return [
        float((a.detach() - b).abs().max() / b.abs().max()) if b.abs().max() > 0 else 0.0
        for a, b in zip(found, exact, strict=True)
    ]


@needs_library
@pytest.mark.parametrize("mask", [None, "bool", "float"], ids=str)
@pytest.mark.parametrize(("heads", "depth"), HEADS)
@pytest.mark.parametrize("length", LENGTHS)
def test_as_exact_as_torch(length, heads, depth, mask, calls):
    case = random_case(3, heads, length, depth, mask=mask)
    exact = [x.detach() for x in case.results(exactly, torch.float64)]
    found = case.results(ours)
    assert calls == [1]
    theirs = worst(case.results(scaled_dot_product_attention), exact)
    for one, of_torch in zip(worst(found, exact), theirs, strict=True):
        assert one <= 2 * of_torch + 1e-6


@needs_library
@pytest.mark.parametrize("size", [1e-3, 30.0, 1e4], ids=["flat", "peaked", "one-hot"])
def test_softmax_of_any_sharpness(size):
    case = random_case(2, 2, 21, 32, size)
    exact = [x.detach() for x in case.results(exactly, torch.float64)]
    theirs = worst(case.results(scaled_dot_product_attention), exact)
    for one, of_torch in zip(worst(case.results(ours), exact), theirs, strict=True):
        assert one <= 2 * of_torch + 1e-6


@needs_library
def test_without_gradients_it_is_the_same(calls):
    case = random_case(2, 3, 19, 32, mask="bool")
    with torch.no_grad():
        found = ours(case.query, case.key, case.value, case.mask, scale=0.3)
    exact = reference.attention(
        *(x.double() for x in (case.query, case.key, case.value)), case.mask, 0.3
    )
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-6)
    assert calls == [1]


@needs_library
def test_strides_of_any_kind():
    # Heads side by side, heads one behind the other, a sentence in all rows, a slice.
    case = random_case(2, 3, 11, 32)
    query, key = case.query.contiguous(), case.key[:1].expand(2, -1, -1, -1)
    value = torch.cat([case.value, case.value], -1)[..., 32:]
    changed = Case(query, key, value, case.upstream[:, :, :1].expand(-1, -1, 11, -1))
    exact = [x.detach() for x in changed.results(exactly, torch.float64)]
    assert max(worst(changed.results(ours), exact)) < 2e-6


@needs_library
def test_a_token_that_sees_nothing_attends_to_zero():
    case = random_case(2, 3, 9, 16)
    sees = EYE & (torch.arange(9)[:, None] > 0)
    found = case.results(lambda *inputs: ours(*inputs[:3], sees))
    theirs = case.results(lambda *inputs: scaled_dot_product_attention(*inputs[:3], sees))
    for one, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not found[0][:, :, 0].any()


@needs_library
def test_nan_stays_in_its_head():
    case = random_case(2, 3, 9, 16)
    case.query[1, 2, 4, 3] = torch.nan
    out = ours(case.query, case.key, case.value)
    assert out.isnan().nonzero()[:, :3].unique(dim=0).tolist() == [[1, 2, 4]]


def of_heads(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


X = of_heads(2, 3, 9, 16)
EYE = torch.eye(9, dtype=torch.bool).expand(2, 1, 9, 9)
OTHERS = [
    pytest.param((of_heads(2, 3, 129, 16),), {}, id="too-long"),
    pytest.param((of_heads(2, 3, 9, 20),), {}, id="no-whole-vectors"),
    pytest.param((of_heads(2, 3, 9, 144),), {}, id="too-wide"),
    pytest.param((of_heads(3, 9, 16),), {}, id="three-dimensions"),
    pytest.param((X.double(),), {}, id="fp64"),
    pytest.param((X.bfloat16(),), {}, id="bf16"),
    pytest.param((X, of_heads(2, 3, 7, 16), of_heads(2, 3, 7, 16)), {}, id="fewer-keys"),
    pytest.param((X.transpose(2, 3).contiguous().transpose(2, 3),), {}, id="rows-not-together"),
    pytest.param((X,), {"is_causal": True}, id="causal"),
    pytest.param((X,), {"attn_mask": EYE.expand(2, 3, 9, 9)}, id="a-mask-a-head"),
    pytest.param((X,), {"attn_mask": EYE[0, 0]}, id="a-mask-of-two-dimensions"),
    pytest.param(
        (X,), {"attn_mask": torch.zeros(2, 1, 9, 9, requires_grad=True)}, id="a-learned-mask"
    ),
]


@pytest.mark.parametrize(("inputs", "options"), OTHERS)
def test_what_it_does_not_take_is_torchs(inputs, options, calls):
    query, key, value = inputs if len(inputs) > 1 else inputs * 3
    with ShortAttention():
        found = scaled_dot_product_attention(query, key, value, **options)
    assert torch.equal(found, scaled_dot_product_attention(query, key, value, **options))
    assert calls == []


def test_dropout_is_torchs(calls):
    found = []
    for attend in (ours, scaled_dot_product_attention):
        torch.manual_seed(3)
        found.append(attend(X, X, X, dropout_p=0.5))
    assert torch.equal(*found)
    assert calls == []


def test_autocast_is_torchs(calls):
    with torch.autocast("cpu"):
        assert ours(X, X, X).dtype == torch.bfloat16
    assert calls == []


def test_without_the_native_library_torch_goes_on(monkeypatch):
    monkeypatch.setattr(short_attention, "attention_kernel", lambda: None)
    assert torch.equal(ours(X, X, X), scaled_dot_product_attention(X, X, X))


@needs_library
def test_masks_that_change_are_read_anew():
    other = EYE.logical_not()
    with ShortAttention():
        found = [scaled_dot_product_attention(X, X, X, mask) for mask in (EYE, other, None, EYE)]
    for one, mask in zip(found, (EYE, other, None, EYE), strict=True):
        wanted = exactly(X, X, X, mask)
        torch.testing.assert_close(one, wanted, rtol=1e-5, atol=1e-6)


@needs_library
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_word_weights_are_the_same(family, calls, monkeypatch):
    # Sentences of several lengths in one chunk: rows are padded, and masks hide the padding.
    encoder = pair_of(family, torch.float32, **of_two_heads(family))
    options = {"steps": 9, "progress": False}
    found = integrated_gradients(encoder, TEXTS, **options)
    assert len(calls) >= 2 * 3  # layers; sentences, baselines and nodes
    monkeypatch.setattr(short_attention, "attention_kernel", lambda: None)
    before = len(calls)
    wanted = integrated_gradients(encoder, TEXTS, **options)
    assert len(calls) == before
    for one, other in zip(found.scores, wanted.scores, strict=True):
        torch.testing.assert_close(
            torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-5 * abs(other).max()
        )


def of_two_heads(family):
    """Heads of 16 numbers."""
    return {"n_heads" if family == "distilbert" else "num_attention_heads": 2}
