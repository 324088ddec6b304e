"""Gradients through the cache are those of the whole batch at once, and memory stays bounded."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from simcse_fast import GradientCache
from simcse_fast.saved_tensors import Saved, Shelf, Slabs

WIDTH = 8
EVERYTHING = 1 << 30
SOME = 60_000  # bytes, of some of the graphs of `Encoder`: see test_more_memory_keeps_more


@pytest.fixture(autouse=True)
def one_thread():
    """The problems are small; threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Encoder(nn.Module):
    """Tokens through one layer of attention, averaged; padding changes nothing."""

    def __init__(self, seed: int = 0, dropout: float = 0.0, dtype: torch.dtype = torch.float64):
        super().__init__()
        torch.manual_seed(seed)
        self.words = nn.Embedding(50, WIDTH, dtype=dtype)
        self.places = nn.Embedding(16, WIDTH, dtype=dtype)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 16, dropout, batch_first=True, dtype=dtype
        )
        self.head = nn.Linear(WIDTH, 5, dtype=dtype)

    def forward(self, features: dict) -> torch.Tensor:
        ids, mask = features["input_ids"], features["attention_mask"]
        x = self.words(ids) + self.places.weight[: ids.shape[1]]
        # Finite, so that a row without tokens is no NaN.
        bias = (1.0 - mask[:, None, :].to(x.dtype)) * -1e9
        bias = bias.expand(-1, ids.shape[1], -1).repeat_interleave(2, 0)
        x = self.layer(x, src_mask=bias)
        kept = mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * kept).sum(1) / kept.sum(1).clamp(min=1))


def padded(rows: int, longest: int, seed: int = 0, width: int | None = None) -> dict:
    generator = torch.Generator().manual_seed(seed)
    width = longest if width is None else width
    lengths = torch.randint(1, longest + 1, (rows,), generator=generator)
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.randint(1, 50, (rows, width), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


def loss_of(*columns: torch.Tensor) -> torch.Tensor:
    """Every row of the first against every row of all."""
    query = F.normalize(columns[0].to(torch.promote_types(columns[0].dtype, torch.float32)), dim=-1)
    key = F.normalize(torch.cat([x.to(query.dtype) for x in columns]), dim=-1)
    logits = 5 * query @ key.roll(-1, 0).T
    return logits.logsumexp(1).mean() - logits.diagonal().mean() + columns[-1].square().mean()


def gradients_of(modules: list[nn.Module], loss: torch.Tensor | None = None) -> list:
    if loss is not None:
        loss.backward()
    found = [p.grad for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad()
    return found


def assert_equal(ours: list, theirs: list, tolerance: float = 1e-10) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) is (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max().item())


def assert_rounded_alike(plain: list, ours: list, exact: list) -> None:
    """Sums of other parts round to other bits: as far from the truth as without a cache."""
    for one, other, true in zip(plain, ours, exact, strict=True):
        allowed = 2 * (one - true).abs().max() + 2**-8 * true.abs().max().clamp(min=1e-2)
        assert (other - true).abs().max() <= allowed


def uncached(towers: list[nn.Module], columns: list) -> list:
    many = towers * len(columns) if len(towers) == 1 else towers
    return gradients_of(towers, loss_of(*(t(x) for t, x in zip(many, columns, strict=True))))


def cached(towers: list[nn.Module], columns: list, **options) -> tuple[list, GradientCache]:
    cache = GradientCache(towers[0] if len(towers) == 1 else towers, **options)
    return gradients_of(towers, loss_of(*cache(*columns))), cache


LIMITS = [
    pytest.param({"memory_limit": 0}, id="nothing-kept"),
    pytest.param({"memory_share": 0.0}, id="no-share"),
    pytest.param({"memory_limit": SOME}, id="some-kept"),
    pytest.param({"memory_limit": EVERYTHING}, id="everything-kept"),
    pytest.param({}, id="half-of-what-is-free"),
]
CUTS = [
    pytest.param({}, id="default"),
    pytest.param({"mini_batch_tokens": 1}, id="row-by-row"),
    pytest.param({"mini_batch_tokens": 13}, id="few-tokens"),
    pytest.param({"mini_batch_tokens": 10**6}, id="all-at-once"),
    pytest.param({"mini_batch_size": 3}, id="few-rows"),
    pytest.param({"mini_batch_size": 2, "mini_batch_tokens": 9}, id="rows-and-tokens"),
]
# Rows, longest row and padded width of each column.
COLUMNS = [
    pytest.param([(7, 6, 6)], id="one"),
    pytest.param([(7, 6, 6), (7, 6, 6)], id="two"),
    pytest.param([(5, 4, 4), (9, 8, 12)], id="more-keys-than-queries-wider"),
    pytest.param([(5, 6, 9), (5, 4, 4), (8, 7, 7)], id="three"),
    pytest.param([(4, 6, 6), (4, 1, 1), (6, 3, 7), (1, 5, 5)], id="four-tokens-of-one"),
]


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


class Recorded(nn.Module):
    """Dropout that remembers by row what it let through; draws as often as it is told."""

    def __init__(self, draws: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.outer = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2))
        self.draws = draws
        self.masks: dict[int, list[torch.Tensor]] = {}
        self.replays = True

    def forward(self, x):
        numbers, x = x[:, 0].long().tolist(), x[:, 1:]
        for _ in range(self.draws):
            if self.replays:
                mask = (torch.rand_like(x) < 0.7).to(x.dtype)
                for number, row in zip(numbers, mask, strict=True):
                    self.masks.setdefault(number, []).append(row)
            else:
                mask = torch.stack([self.masks[number].pop(0) for number in numbers])
            x = self.inner(x).tanh() * mask
        return self.outer(F.dropout(x, 0.5) if not self.draws else x)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("draws", [1, 3])
def test_dropout_draws_the_same_again(draws, limit):
    encoder = Recorded(draws)
    rows = torch.arange(19.0, dtype=torch.float64)[:, None]
    x = torch.cat([rows, torch.randn(19, WIDTH, dtype=torch.float64)], 1)
    torch.manual_seed(5)
    cache = GradientCache(encoder, mini_batch_size=4, **limit)
    ours = gradients_of([encoder], loss_of(*cache(x[:8], x[8:])))
    kept = cache.statistics.kept
    twice = sum(len(masks) > draws for masks in encoder.masks.values())
    assert (twice == 0) == (kept == cache.statistics.mini_batches)
    for masks in encoder.masks.values():
        for one, other in zip(masks[:draws], masks[draws:], strict=False):
            assert torch.equal(one, other)
    encoder.replays = False
    assert_equal(ours, gradients_of([encoder], loss_of(encoder(x[:8]), encoder(x[8:]))))


def test_random_numbers_do_not_depend_on_memory():
    encoder, columns = Encoder(dropout=0.3), [padded(9, 8, n) for n in range(2)]
    found, after = [], []
    for limit in (0, SOME, EVERYTHING):
        torch.manual_seed(3)
        cache = GradientCache(encoder, mini_batch_tokens=13, memory_limit=limit)
        loss = loss_of(*cache(*columns))
        state = torch.get_rng_state()
        found.append(gradients_of([encoder], loss))
        assert torch.equal(torch.get_rng_state(), state)  # the backward pass leaves no trace
        after.append(state)
    assert_equal(found[0], found[1], 1e-12)
    assert_equal(found[0], found[2], 1e-12)
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])


@pytest.mark.parametrize("limit", LIMITS)
def test_what_comes_from_above_reaches_every_mini_batch(limit):
    encoder, batches = Encoder(), [[padded(6, 7, 2 * n), padded(8, 5, 2 * n + 1)] for n in range(3)]
    cache = GradientCache(encoder, mini_batch_tokens=12, **limit)
    for columns in batches:  # accumulated, and scaled as GradScaler scales
        (1024 * loss_of(*cache(*columns)) / 4).backward()
    ours = gradients_of([encoder])
    for columns in batches:
        (1024 * loss_of(*map(encoder, columns)) / 4).backward()
    assert_equal(ours, gradients_of([encoder]))


@pytest.mark.parametrize("limit", LIMITS)
def test_backward_twice(limit):
    encoder, columns = Encoder(dropout=0.2), [padded(6, 7, n) for n in range(2)]
    loss = loss_of(*GradientCache(encoder, mini_batch_tokens=12, **limit)(*columns))
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in encoder.parameters()]
    assert_equal(gradients_of([encoder], loss), [2 * x for x in once])


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("outside", [False, True], ids=["backward-inside", "backward-outside"])
def test_autocast(outside, limit):
    columns = [padded(9, 8, n) for n in range(2)]
    encoder = Encoder(dtype=torch.float32)
    exact = uncached([encoder], columns)
    found = []
    for embed in (
        lambda: map(encoder, columns),
        lambda: GradientCache(encoder, mini_batch_tokens=13, **limit)(*columns),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(*embed())
            if not outside:
                loss.backward()
        if outside:
            loss.backward()
        found.append(gradients_of([encoder]))
    assert_rounded_alike(*found, exact)


@pytest.mark.parametrize("limit", LIMITS)
def test_autocast_around_the_backward_pass_only(limit):
    """Embedded again without it: what is computed backward is rounded, as without a cache."""
    columns = [padded(9, 8, n) for n in range(2)]
    encoder, dtypes = Encoder(dtype=torch.float32), set()
    encoder.head.register_forward_hook(lambda *given: dtypes.add(given[-1].dtype))
    exact = uncached([encoder], columns)
    found = []
    for embed in (
        lambda: map(encoder, columns),
        lambda: GradientCache(encoder, mini_batch_tokens=13, **limit)(*columns),
    ):
        loss = loss_of(*embed())
        with torch.autocast("cpu", torch.bfloat16):
            loss.backward()
        found.append(gradients_of([encoder]))
    assert dtypes == {torch.float32}
    assert_rounded_alike(*found, exact)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize(
    "frozen", ["words", "layer", "all-but-head"], ids=["words", "middle", "all-but-head"]
)
def test_partly_frozen(frozen, limit):
    encoder, columns = Encoder(), [padded(6, 7, n) for n in range(2)]
    for name, p in encoder.named_parameters():
        p.requires_grad_(not name.startswith(frozen) and (frozen[0] != "a" or "head" in name))
    ours, cache = cached([encoder], columns, mini_batch_tokens=12, **limit)
    assert_equal(ours, uncached([encoder], columns))
    if limit == {"memory_limit": EVERYTHING}:
        _, free = cached([Encoder()], columns, mini_batch_tokens=12, **limit)
        assert cache.statistics.kept_bytes <= free.statistics.kept_bytes


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("number", [0, 1])
def test_frozen_towers_are_embedded_once(number, limit):
    towers = [Encoder(0), Encoder(1)]
    towers[number].requires_grad_(False)
    calls = []
    towers[number].register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    columns = [padded(6, 7, n) for n in range(2)]
    ours, _ = cached(towers, columns, mini_batch_size=3, **limit)
    assert len(calls) <= 3  # two mini-batches, and one more look at most
    assert_equal(ours, uncached(towers, columns))


@pytest.mark.parametrize("limit", LIMITS)
def test_a_tower_that_the_loss_does_not_read(limit):
    towers, columns = [Encoder(0), Encoder(1)], [padded(6, 7, n) for n in range(2)]
    cache = GradientCache(towers, mini_batch_size=3, **limit)
    query, _ = cache(*columns)
    ours = gradients_of(towers, query.square().sum())
    assert_equal(ours, gradients_of(towers, towers[0](columns[0]).square().sum()))
    assert any(x is None for x in ours)
    shared = Encoder()
    cache = GradientCache(shared, mini_batch_size=3, **limit)
    _, key = cache(*columns)
    ours = gradients_of([shared], key.square().sum())
    assert_equal(ours, gradients_of([shared], shared(columns[1]).square().sum()))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context):
    encoder, columns = Encoder(dropout=0.4).eval(), [padded(6, 7), padded(3, 9)]
    cache = GradientCache(encoder, mini_batch_tokens=12)
    with context():
        ours = cache(*columns)
        theirs = [encoder(column) for column in columns]
    assert cache.statistics.kept == 0
    assert cache.slabs.total == 0
    for one, other in zip(ours, theirs, strict=True):
        assert not one.requires_grad
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def copied(build, *leaves: torch.Tensor) -> tuple[list, list]:
    """Gradients of what is built, as it is and with what it saves in memory of its own."""
    plain = [x.clone().requires_grad_() for x in leaves]
    build(*plain).backward()
    mine = [x.clone().requires_grad_() for x in leaves]
    shelf = Shelf(Slabs())
    with Saved(shelf) as saved:
        out = build(*mine)
    assert saved.total > 0
    junk = [torch.full((n,), torch.nan) for n in (8, 64, 512) for _ in range(8)]  # on what is freed
    out.backward()
    del junk
    return [x.grad for x in mine], [x.grad for x in plain]


def in_place(x, y):
    z = (x * y).exp()
    w = z * z  # saves z
    return (w.add_(1) * y).sum()


def changed_between(x, y):
    buffer = torch.ones(4, 6, dtype=x.dtype)
    first = x * buffer.clone().mul_(2)
    buffer.mul_(3)
    second = y * buffer
    return (first * second).sum()


def one_storage_twice(x, y):
    table = torch.arange(48.0, dtype=x.dtype).view(2, 4, 6)
    first = x * table[0]
    second = y * table[1]
    return (first * second).sum()


BUILDS = {
    "in-place": in_place,
    "changed-between": changed_between,
    "one-storage-twice": one_storage_twice,
    "views": lambda x, y: (x.exp()[1:3, ::2] * y.exp()[::2, 1::2]).sum(),
    "transposed": lambda x, y: (x.exp().T @ y.exp()).square().sum(),
    "expanded": lambda x, y: (x.exp()[:1].expand(4, 6) * y).exp().sum(),
    "not-contiguous": lambda x, y: (x.exp().T.flip(0)[::2] * y.T[::2]).square().sum(),
    "bool-mask": lambda x, y: torch.where(x > 0, x * y, y.exp()).sum(),
    "integers": lambda x, y: (
        x[torch.tensor([0, 2, 2])].square().gather(1, torch.tensor([[1], [0], [5]])).sum() * y.sum()
    ),
    "no-elements": lambda x, y: (x[:0].exp() * y[:0]).sum() + (x.exp() * y.exp()).sum(),
    "softmax": lambda x, y: (x.softmax(-1) * y.log_softmax(-1)).sum(),
    "complex": lambda x, y: (torch.fft.fft(x) * torch.fft.fft(y).conj()).abs().sum(),
    "sorted": lambda x, y: (x.sort(-1).values * y.cumsum(-1)).square().sum(),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_graphs_in_memory_of_their_own_have_the_same_bits(build, dtype):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(4, 6, dtype=dtype, generator=generator) for _ in range(2)]
    for one, other in zip(*copied(build, *leaves), strict=True):
        assert torch.equal(one, other)


def test_copies_outlive_what_the_encoder_overwrites():
    """A workspace that every call uses again: an error without copies, exact with them."""
    weight = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    workspace, shelf, outs, inputs = torch.empty(4, 6, dtype=torch.float64), Shelf(Slabs()), [], []
    for _ in range(3):
        inputs.append(torch.randn(4, 6, dtype=torch.float64))
        workspace.copy_(inputs[-1])
        with Saved(shelf):
            outs.append((workspace @ weight).tanh().sum())
    sum(outs).backward()
    ours, weight.grad = weight.grad, None
    sum((x @ weight).tanh().sum() for x in inputs).backward()
    assert torch.equal(ours, weight.grad)


def test_an_odd_number_of_bytes_under_wider_numbers():
    leaf = torch.ones(2, requires_grad=True)
    other = torch.frombuffer(bytearray(11), dtype=torch.uint8)[:8].view(torch.float32)
    with Saved(Shelf(Slabs())):
        out = (leaf * other).sum()
    out.backward()
    assert leaf.grad.tolist() == [0.0, 0.0]


def test_parameters_are_never_copied():
    layer = nn.Linear(64, 64)
    with Saved(None) as learned:
        layer(torch.ones(1, 64, requires_grad=True))
    layer.requires_grad_(False)
    with Saved(None) as frozen:
        layer(torch.ones(1, 64, requires_grad=True))
    assert learned.total <= 64 * 4
    assert frozen.total <= 64 * 4


def used(cache: GradientCache) -> int:
    """Bytes of slabs that are not free."""
    return cache.slabs.total - sum(x.numel() for x in cache.slabs.free)


def test_slabs_come_back():
    encoder, columns = Encoder(), [padded(9, 8, n) for n in range(2)]
    cache = GradientCache(encoder, mini_batch_tokens=13, memory_limit=EVERYTHING)
    loss = loss_of(*cache(*columns))
    total = cache.slabs.total
    assert used(cache) > 0
    loss.backward()
    assert used(cache) == 0  # also while the loss lives
    loss = loss_of(*cache(*columns))
    assert used(cache) > 0
    del loss  # without a backward pass
    gc.collect()
    assert used(cache) == 0
    assert cache.slabs.total == total


@pytest.mark.parametrize("call", [1, 3, 6], ids=["first", "third", "in-backward"])
def test_slabs_come_back_after_an_error(call):
    encoder, columns = Encoder(), [padded(9, 8, n) for n in range(2)]
    calls = []

    def failing(features):
        calls.append(0)
        if len(calls) == call:
            raise ArithmeticError("pretended")
        return encoder(features)

    cache = GradientCache(failing, mini_batch_size=4, memory_limit=SOME)

    def step():
        loss = loss_of(*cache(*columns))
        assert 0 < cache.statistics.kept < cache.statistics.mini_batches
        loss.backward()

    with pytest.raises(ArithmeticError):
        step()
    gc.collect()
    assert used(cache) == 0
    encoder.zero_grad()
    ours = gradients_of([encoder], loss_of(*cache(*columns)))
    assert_equal(ours, uncached([encoder], columns))


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first-first", "last-first"])
def test_two_batches_on_their_way_at_once(order, limit):
    encoder = Encoder(dropout=0.0)
    batches = [[padded(9, 8, 2 * n), padded(7, 6, 2 * n + 1)] for n in range(2)]
    cache = GradientCache(encoder, mini_batch_tokens=13, **limit)
    losses = [loss_of(*cache(*columns)) for columns in batches]
    for number in order:
        assert_equal(gradients_of([encoder], losses[number]), uncached([encoder], batches[number]))
    assert used(cache) == 0


def test_more_memory_keeps_more():
    encoder, columns = Encoder(), [padded(20, 9, n) for n in range(2)]
    kept = []
    for limit in (0, SOME // 4, SOME, 4 * SOME, EVERYTHING):
        cache = GradientCache(encoder, mini_batch_tokens=13, memory_limit=limit)
        for _ in range(2):  # what a token takes is known the second time
            loss_of(*cache(*columns)).backward()
            assert cache.statistics.kept_bytes <= limit
        kept.append(cache.statistics.kept)
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert 0 < kept[2] < kept[3] <= kept[4] == cache.statistics.mini_batches


@pytest.mark.parametrize("call", [1, 2, 5])
def test_out_of_memory_lets_go_and_goes_on(call):
    encoder, columns = Encoder(dropout=0.3), [padded(9, 8, n) for n in range(2)]
    calls = []

    def failing(features):
        calls.append(0)
        if len(calls) == call:
            torch.rand(3)  # on its way already
            raise torch.OutOfMemoryError("pretended")
        return encoder(features)

    torch.manual_seed(0)
    undisturbed = GradientCache(encoder, mini_batch_size=3, memory_limit=EVERYTHING)
    expected = gradients_of([encoder], loss_of(*undisturbed(*columns)))
    state = torch.get_rng_state()
    torch.manual_seed(0)
    cache = GradientCache(failing, mini_batch_size=3, memory_limit=EVERYTHING)
    loss = loss_of(*cache(*columns))
    assert cache.budget == EVERYTHING // 2
    assert cache.statistics.kept == cache.statistics.mini_batches - call
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(gradients_of([encoder], loss), expected, 1e-12)
    assert used(cache) == 0


def test_out_of_memory_in_the_backward_pass_lets_go_too():
    encoder, columns = Encoder(), [padded(9, 8, n) for n in range(2)]
    towers = [encoder, Encoder(1)]
    fails = []

    def failing(features):
        if fails and fails.pop():
            raise torch.OutOfMemoryError("pretended")
        return encoder(features)

    cache = GradientCache([failing, towers[1]], mini_batch_size=3, memory_limit=EVERYTHING)
    loss = loss_of(*cache(*columns))
    run = loss.grad_fn
    first = next(x for x in _nodes(run) if hasattr(x, "embedded")).embedded._run.parts[0]
    first.graph = None  # as if there had been no room for it
    fails.append(True)
    assert_equal(gradients_of(towers, loss), uncached(towers, columns))
    assert cache.budget == EVERYTHING // 2


def _nodes(node) -> list:
    found, new = [], [node]
    while new:
        found.append(new.pop())
        new += [x for x, _ in found[-1].next_functions if x is not None]
    return found


def test_out_of_memory_with_nothing_to_let_go_of_is_raised():
    def failing(features):
        raise torch.OutOfMemoryError("pretended")

    for limit in (0, EVERYTHING):
        cache = GradientCache(failing, memory_limit=limit)
        with pytest.raises(torch.OutOfMemoryError, match="pretended"):
            cache(padded(3, 4))
    with torch.no_grad(), pytest.raises(torch.OutOfMemoryError, match="pretended"):
        GradientCache(failing)(padded(3, 4))


def test_graphs_die_with_their_backward_pass():
    layer, alive = nn.Linear(4, 4), []

    def encode(x):
        y = layer(x)
        alive.append(weakref.ref(y))
        return y

    cache = GradientCache(encode, mini_batch_size=2, memory_limit=EVERYTHING)
    embeddings = cache(torch.ones(6, 4))[0]
    embeddings.sum().backward()
    assert not any(x() is not None for x in alive)


PEAK = """
import sys, torch
from torch import nn
from simcse_fast import GradientCache
from simcse_fast.memory import resident_memory, return_free_pages

torch.set_num_threads(1)
torch.manual_seed(0)
layers = [nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256)) for _ in range(3)]
encoder = nn.Sequential(*layers)
limit, most = int(sys.argv[1]), 0

def watched(x):
    global most
    y = encoder(x)
    most = max(most, resident_memory())
    return y

cache = GradientCache(watched, model=encoder, mini_batch_size=256, memory_limit=limit)
x = torch.randn(8192, 256)
for _ in range(3):
    (y,) = cache(x)
    y.square().mean().backward()
print(most, cache.statistics.kept, cache.statistics.mini_batches)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_what_was_allowed():
    limit = 200_000_000  # far more than what chance adds: about 10 MB
    found = []
    for bound in (0, limit):
        done = subprocess.run(  # noqa: S603 - this interpreter
            [sys.executable, "-c", PEAK, str(bound)], capture_output=True, text=True, check=True
        )
        found.append([int(x) for x in done.stdout.split()])
    (least, none, _), (most, kept, count) = found
    assert none == 0
    assert 0 < kept < count
    assert most - least <= 1.1 * limit


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
            pytest.raises(
                ValueError, match="encode: expected embeddings of " + message[1:] if 0 else message
            ),
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
