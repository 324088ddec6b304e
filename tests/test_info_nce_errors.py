"""Bad input: each message names the argument, the value and what was expected."""

from __future__ import annotations

import importlib.util
import math
import re

import pytest
import torch

from simcse_fast import (
    BackendUnavailableError,
    InfoNCELoss,
    backend,
    backends,
    info_nce,
    set_workspace_limit,
)

X = torch.ones(4, 3)
IDS = torch.arange(4)


def bad(error, message, query=X, key=X, **options):
    return pytest.param(error, message, query, key, options, id=re.sub(r"\W+", "-", message)[:60])


CASES = [
    bad(TypeError, "query: expected a tensor, got list", query=[[1.0]]),
    bad(TypeError, "query: expected fp64, fp32, bf16 or fp16, got torch.int64", query=X.long()),
    bad(ValueError, "query: expected shape (rows >= 1, D >= 1), got (0, 3)", query=X[:0]),
    bad(ValueError, "key: expected shape (rows >= 1, D >= 1), got (4, 0)", key=X[:, :0]),
    bad(ValueError, "query: expected shape (rows >= 1, D >= 1), got (3,)", query=X[0]),
    bad(ValueError, "key: width 2 of shape (4, 2) differs from query's", key=X[:, :2]),
    bad(TypeError, "key: has dtype torch.float64, expected query's, torch.float32", key=X.double()),
    bad(ValueError, "key: is on meta, expected query's device, cpu", key=X.to("meta")),
    bad(ValueError, "labels: needed when query has more rows than key (4 > 3)", key=X[:3]),
    bad(
        ValueError,
        "labels: 2 of 4 values are outside [0, 4): first at row 1 (value 4)",
        labels=torch.tensor([0, 4, 1, -1]),
    ),
    bad(TypeError, "labels: expected integers (int64), got torch.float32", labels=torch.ones(4)),
    bad(ValueError, "labels: expected shape (4,), one per row of query, got (3,)", labels=IDS[:3]),
    bad(TypeError, "labels: expected a tensor of integers, got list", labels=[0, 1, 2, 3]),
    bad(ValueError, "labels: cannot be given with symmetric=True", labels=IDS, symmetric=True),
    bad(ValueError, "symmetric: needs as many queries as keys", query=X[:2], symmetric=True),
    bad(ValueError, "hard_negatives: expected shape (4, K >= 1, 3), got (4, 0, 3)",
        hard_negatives=torch.ones(4, 0, 3)),
    bad(ValueError, "hard_negatives: expected shape (4, K >= 1, 3), got (2, 1, 3)",
        hard_negatives=torch.ones(2, 1, 3)),
    bad(ValueError, "hard_negatives: width 2 of shape (4, 1, 2) differs from query's",
        hard_negatives=torch.ones(4, 1, 2)),
    bad(TypeError, "hard_negatives: expected a tensor, got list", hard_negatives=[1]),
    bad(ValueError, "temperature: expected a finite number > 0, got 0", temperature=0.0),
    bad(ValueError, "temperature: expected a finite number > 0, got -0.1", temperature=-0.1),
    bad(ValueError, "temperature: expected a finite number > 0, got nan", temperature=math.nan),
    bad(TypeError, "temperature: expected a number, got str", temperature="cold"),
    bad(ValueError, "temperature: expected a finite number > 0, got 0.0",
        temperature=torch.tensor(0.0)),
    bad(ValueError, "temperature: expected a finite number > 0, got inf",
        temperature=torch.tensor(math.inf)),
    bad(ValueError, "temperature: expected a number or a 0-d floating-point tensor, got shape (1,)",
        temperature=torch.ones(1)),
    bad(ValueError, "temperature: is on meta", temperature=torch.ones((), device="meta")),
    bad(ValueError, "key_ids: expected beside the other ids, got None", query_ids=IDS),
    bad(ValueError, "query_ids: expected beside the other ids, got None", key_ids=IDS),
    bad(ValueError, "key_ids: expected shape (4,), one per row of key, got (3,)",
        query_ids=IDS, key_ids=IDS[:3]),
    bad(TypeError, "query_ids: expected integers (int64), got torch.float32",
        query_ids=IDS.float(), key_ids=IDS),
    bad(ValueError, "false_negative_margin: expected a number or None, got nan",
        false_negative_margin=math.nan),
    bad(TypeError, "false_negative_margin: expected a number or None, got str",
        false_negative_margin="wide"),
    bad(TypeError, "hardness: expected a number, got Tensor", hardness=torch.ones(2)),
    bad(TypeError, "label_smoothing: expected a number, got list", label_smoothing=[0.1]),
    bad(ValueError, "reduction: expected 'mean', 'sum' or 'none', got None", reduction=None),
    bad(ValueError, "labels: 1 of 4 values are outside [0, 4): first at row 3 (value 9)",
        labels=torch.tensor([0, 1, 2, 9], dtype=torch.uint16)),
    bad(ValueError, "hardness: expected a finite number >= 0, got -1", hardness=-1),
    bad(ValueError, "hard_negative_weight: expected a finite number > 0, got 0",
        hard_negative_weight=0),
    bad(ValueError, "label_smoothing: expected a finite number >= 0 and <= 1, got 1.5",
        label_smoothing=1.5),
    bad(TypeError, "weight: expected a floating-point tensor, got torch.int64", weight=IDS),
    bad(ValueError, "weight: expected shape (4,), got (3,)", weight=torch.ones(3)),
    bad(ValueError, "weight: gets no gradient; pass weight.detach()",
        weight=torch.ones(4, requires_grad=True)),
    bad(ValueError, "reduction: expected 'mean', 'sum' or 'none', got 'max'", reduction="max"),
    bad(TypeError, "process_group: expected a torch.distributed.ProcessGroup, \"world\" or None, "
        "got 'nccl'", process_group="nccl"),
    bad(ValueError, "process_group: torch.distributed is not initialised", process_group="world"),
    bad(ValueError, "backend: expected one of auto, reference, torch, cpu, triton, cuda, got 'gpu'",
        backend="gpu"),
    bad(ValueError, "key: 2 of 4 rows hold NaN or infinity, first at row 1",
        key=torch.tensor([[1.0] * 3, [math.nan] * 3, [math.inf] * 3, [1.0] * 3]),
        check_finite=True),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "query", "key", "options"), CASES)
def test_bad_input_is_named(error, message, query, key, options):
    with pytest.raises(error, match=re.escape(message)):
        info_nce(query, key, **options)


def test_a_named_backend_that_cannot_run_says_what_is_missing():
    with pytest.raises(BackendUnavailableError, match=r'backend="cuda": .*use backend="auto"'):
        info_nce(X, X, backend="cuda")
    assert not backends()["cuda"].available


def triton_here(monkeypatch, *, capability=None, interpreted=False):
    """As on a machine whose GPU, if any, has a compute capability."""
    there = capability is not None
    monkeypatch.setattr(backend, "_interpreted", lambda: interpreted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")
    monkeypatch.setitem(backend.PROBLEMS, "triton", backend._triton_problem.__wrapped__)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize(
    ("capability", "message"),
    [
        (None, "torch finds no CUDA device; install a build of torch with CUDA"),
        ((7, 5), "the device has compute capability 7.5, and 8.0 is needed"),
        ((9, 0), "the tensors are on cpu; move them to cuda"),
    ],
)
def test_triton_says_what_it_lacks(capability, message, monkeypatch):
    triton_here(monkeypatch, capability=capability)
    with pytest.raises(BackendUnavailableError, match=f'"triton": {message}.*use backend="auto"'):
        info_nce(X, X, backend="triton")
    assert backends()["triton"].available == (capability == (9, 0))


@pytest.mark.parametrize(
    ("capability", "chosen"), [(None, "torch"), ((7, 5), "torch"), ((8, 0), "triton")]
)
def test_tensors_on_a_gpu_take_triton_where_it_runs(capability, chosen, monkeypatch):
    triton_here(monkeypatch, capability=capability)
    assert backend.choose("auto", torch.device("cuda")) == chosen


def test_without_the_library_auto_takes_torch_and_cpu_says_why(monkeypatch):
    monkeypatch.setitem(backend.PROBLEMS, "cpu", lambda: "the native library is missing")
    assert info_nce(X, X).item() == pytest.approx(math.log(4))
    assert backends()["cpu"].detail == "the native library is missing"
    with pytest.raises(BackendUnavailableError, match="the native library is missing"):
        info_nce(X, X, backend="cpu")


def test_module_refuses_options_that_info_nce_lacks():
    with pytest.raises(TypeError, match=r"options: \['scale'\] unknown; expected some of"):
        InfoNCELoss(scale=20)
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0, got 0"):
        InfoNCELoss(0)


@pytest.mark.parametrize(
    ("limit", "error", "message"),
    [
        (0, ValueError, "limit: expected at least 1 byte, got 0"),
        ("1G", TypeError, "limit: expected a number of bytes or None, got '1G'"),
    ],
)
def test_workspace_limit_is_checked(limit, error, message):
    with pytest.raises(error, match=message):
        set_workspace_limit(limit)
