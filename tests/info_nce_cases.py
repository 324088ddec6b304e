"""Problems for the loss's tests, the textbook loss in plain torch, and the rule of comparison."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from simcse_fast import backends, info_nce
from simcse_fast.losses.info_nce import block_softmax

if TYPE_CHECKING:
    from collections.abc import Callable

    from simcse_fast.kernels.infonce.terms import Block


class OnCuda(str):
    """The name of a back-end, for tests that put their tensors on a CUDA device."""

    __slots__ = ()


def device_of(backend: str) -> str:
    """Where a test's tensors go."""
    return "cuda" if isinstance(backend, OnCuda) else "cpu"


# What runs on this machine. Without a GPU, Triton's kernels run in its interpreter, on the CPU.
ON_CPU = [
    pytest.param(name, marks=pytest.mark.skipif(not status.available, reason=status.detail))
    for name, status in backends().items()
    if name != "cuda" and not (name == "triton" and torch.cuda.is_available())
]
ON_CUDA = [
    pytest.param(OnCuda(name), marks=pytest.mark.gpu, id=f"{name}-on-cuda")
    for name in ("reference", "torch", "triton")
    if torch.cuda.is_available()
]
BACKENDS = ON_CPU + ON_CUDA
FUSED = [p for p in BACKENDS if p.values[0] != "reference"]
QUICK = [p for p in FUSED if p.values[0] != "triton" or isinstance(p.values[0], OnCuda)]
TRITON = OnCuda("triton") if torch.cuda.is_available() else "triton"

NAMES = ("query", "key", "hard_negatives", "temperature")  # get gradients


@dataclass(frozen=True)
class Case:
    """Tensors that get gradients, and the options of the call."""

    query: Tensor
    key: Tensor
    hard_negatives: Tensor | None = None
    temperature: Tensor | None = field(default_factory=lambda: torch.tensor(0.05))
    options: dict[str, Any] = field(default_factory=dict)

    def on(self, backend: str) -> Case:
        """The case where a back-end's tests have their tensors."""
        move = lambda x: x.to(device_of(backend)) if isinstance(x, Tensor) else x  # noqa: E731
        tensors = {name: move(getattr(self, name)) for name in NAMES}
        return Case(**tensors, options={k: move(v) for k, v in self.options.items()})

    def to(self, dtype: torch.dtype) -> Case:
        return replace(
            self,
            query=self.query.to(dtype),
            key=self.key.to(dtype),
            hard_negatives=None if self.hard_negatives is None else self.hard_negatives.to(dtype),
            temperature=None
            if self.temperature is None
            else self.temperature.to(torch.promote_types(dtype, torch.float32)),
        )

    def fixed(self) -> Case:
        """With the temperature as a number, which a plan knows before it starts."""
        number = {"temperature": float(self.temperature)}
        return replace(self, temperature=None, options=self.options | number)


def random_case(
    rows: int,
    columns: int | None = None,
    width: int = 48,
    hard: int = 0,
    dtype: torch.dtype = torch.float32,
    temperature: float = 0.05,
    noise: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> Case:
    """Keys are noisy copies of the queries, so that losses are neither trivial nor hopeless."""
    g = torch.Generator().manual_seed(seed)
    columns = rows if columns is None else columns
    key = torch.randn(columns, width, generator=g, dtype=torch.float64)
    query = torch.randn(rows, width, generator=g, dtype=torch.float64)
    paired = min(rows, columns)
    query[:paired] = key[:paired] + noise * query[:paired]
    others = torch.randn(rows, hard, width, generator=g, dtype=torch.float64) if hard else None
    if not options.get("normalize", True):  # dot products about as large as cosines
        query, key = query / width**0.5, key / width**0.5
    case = Case(query, key, others, torch.tensor(temperature, dtype=torch.float64), options)
    return case.to(dtype).to(dtype)


def textbook(  # noqa: C901  # one branch per option
    query: Tensor,
    key: Tensor,
    *,
    hard_negatives: Tensor | None = None,
    temperature: Tensor | float,
    labels: Tensor | None = None,
    symmetric: bool = False,
    query_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    false_negative_margin: float | None = None,
    hardness: float = 0.0,
    hard_negative_weight: float = 1.0,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """What users write: logits in the inputs' type, masks of -inf, torch's cross-entropy."""
    labels = torch.arange(len(query), device=query.device) if labels is None else labels
    unit = (lambda x: F.normalize(x, dim=-1)) if normalize else (lambda x: x)
    q, k = unit(query), unit(key)
    positive = F.one_hot(labels, len(key)).bool()

    def logits_of(similarity: Tensor, *, with_hard: bool) -> Tensor:
        logits = similarity / temperature
        logits = logits + torch.where(positive, 0.0, hardness * similarity.detach()).to(logits)
        out = torch.zeros_like(positive)
        if false_negative_margin is not None:
            own = similarity[positive][:, None]
            out |= similarity > own + false_negative_margin
        if query_ids is not None:
            out |= query_ids[:, None] == key_ids
        logits = logits.masked_fill(out & ~positive, -torch.inf)
        if hard_negatives is not None and with_hard:
            own = (q[:, None] * unit(hard_negatives)).sum(-1)
            own_logits = own / temperature + hardness * own.detach()
            logits = torch.cat([logits, own_logits + math.log(hard_negative_weight)], 1)
        return logits

    def cross_entropy(logits: Tensor) -> Tensor:
        if not label_smoothing:
            return F.cross_entropy(logits, labels, reduction="none")
        log_p = logits.log_softmax(1)
        remains = log_p > -torch.inf
        mean = log_p.masked_fill(~remains, 0).sum(1) / remains.sum(1)
        own = log_p.gather(1, labels[:, None])[:, 0]
        return -(1 - label_smoothing) * own - label_smoothing * mean

    losses = cross_entropy(logits_of(q @ k.T, with_hard=True))
    if symmetric:
        losses = (losses + cross_entropy(logits_of(k @ q.T, with_hard=False))) / 2
    if weight is not None:
        losses = losses * weight.to(losses.dtype)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return losses.mean() if weight is None else losses.sum() / weight.to(losses.dtype).sum()


def evaluate(
    function: Any, case: Case, upstream: Tensor | None = None, **more: Any
) -> list[Tensor]:
    """[loss, gradient of each tensor there is], in float64, on the CPU."""
    tensors = {
        name: value.detach().clone().requires_grad_()
        for name in NAMES
        if (value := getattr(case, name)) is not None
    }
    loss = function(**tensors, **case.options, **more)
    if upstream is None:
        upstream = torch.linspace(0.5, 2, loss.numel()).view(loss.shape)
    gradients = torch.autograd.grad(loss, list(tensors.values()), upstream.to(loss))
    return [x.double().cpu() for x in (loss.detach(), *gradients)]


def block_gradients(backend: str, inputs: list[Tensor], blocks: tuple[Block, ...]) -> list[Tensor]:
    """[loss, gradient of each tensor] of one softmax over blocks, in float64, on the CPU."""
    inputs = [x.to(device_of(backend)).requires_grad_() for x in inputs]
    loss = block_softmax(inputs, blocks, scale=20.0, normalize=True, backend=backend)
    return [x.double().cpu() for x in (loss.detach(), *torch.autograd.grad(loss, inputs))]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Root-mean-square error of each result over the root mean square of the exact one."""
    return [
        float((x - y).norm() / y.norm().clamp_min(1e-300))
        for x, y in zip(found, exact, strict=True)
    ]


def assert_no_worse(
    make_case: Callable[[int], Case], *, backend: str, seeds: int | None = None
) -> None:
    """Over a few seeds, our errors against fp64 are at most those of the textbook loss.

    The slack is a handful of roundings of a float32 (float64): two correct sums in different
    orders differ by that much. One seed would not do: a single loss may be right by luck.
    """
    ours, textbooks = [], []
    interpreted = backend == "triton" and not isinstance(backend, OnCuda)  # and slow
    for seed in range(seeds or (2 if interpreted else 5)):
        case = make_case(seed).on(backend)
        exact = evaluate(textbook, case.to(torch.float64))
        ours.append(errors(evaluate(info_nce, case, backend=backend), exact))
        textbooks.append(errors(evaluate(textbook, case), exact))
    slack = 4 * torch.finfo(torch.promote_types(case.query.dtype, torch.float32)).eps
    mine, theirs = (torch.tensor(x).square().mean(0).sqrt() for x in (ours, textbooks))
    names = [name for name in NAMES if getattr(case, name) is not None]
    for name, m, t in zip(["loss", *names], mine, theirs, strict=True):
        assert m <= t + slack, f"{name}: our error {m:.2e}, torch's {t:.2e}"


def check_triton(case: Case) -> None:
    """No worse than torch; in fp16 at a scale at which gradients survive that type."""
    if case.query.dtype != torch.float16:
        assert_no_worse(lambda _: case, backend=TRITON, seeds=1)
        return
    upstream = torch.tensor(2.0**20)
    exact = evaluate(textbook, case.to(torch.float64), upstream)
    found = errors(evaluate(info_nce, case.on(TRITON), upstream, backend=TRITON), exact)
    assert max(found) < 5e-3, found


class Counted:
    """A kernel that notes its launches."""

    def __init__(self, kernel, count):
        self.kernel, self.count = kernel, count

    def __getitem__(self, grid):
        self.count.append(self.kernel)
        return self.kernel[grid]
