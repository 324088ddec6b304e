"""Replayed losses: the rules on any machine with a recorder that computes, CUDA's on a GPU."""

from __future__ import annotations

import threading

import pytest
import torch
from info_nce_cases import OnCuda, random_case

from simcse_fast import autograd, info_nce, set_workspace_limit
from simcse_fast.kernels.infonce import graphs

on_gpu = pytest.mark.gpu if torch.cuda.is_available() else pytest.mark.skip("needs a CUDA device")
CALLS = graphs.DIRECT + 3  # two are replayed


class Computing:
    """A replay computes again, from and into the same memory."""

    def __init__(self):
        self.log, self.graphs, self.fails = [], [], False

    def may_capture(self):
        return True

    def capture(self, compute, like, first):
        self.log.append("capture first" if first else "capture")
        if self.fails:
            raise RuntimeError("refused")
        inputs = [None if x is None else torch.full_like(x, 7) for x in like]
        outputs = [None if x is None else x.clone() for x in compute(inputs)]

        def replay():
            self.log.append("replay")
            for mine, new in zip(outputs, compute(inputs), strict=True):
                if mine is not None:
                    mine.copy_(new)

        self.graphs.append((inputs, outputs))
        return replay, inputs, outputs

    def begin(self):
        self.log.append("begin")

    def end(self):
        self.log.append("end")


@pytest.fixture
def recorder():
    return Computing()


@pytest.fixture
def replays(recorder):
    return graphs.Replays(recorder)


def twice(inputs):
    """Two results of different types, none of the second input."""
    return [inputs[0] * 2, None, inputs[0].double().sum()]


def test_a_key_that_comes_back_is_captured_and_replayed_in_order(replays, recorder):
    for call in range(CALLS):
        x = torch.full((3,), float(call))
        y, none, total = replays.run("key", [x, None], twice)
        assert none is None
        assert y.tolist() == [2.0 * call] * 3
        assert (total.dtype, total.item()) == (torch.float64, 3.0 * call)
    assert recorder.log == ["capture first", "end", *["begin", "replay", "end"] * 2]


def test_results_are_the_callers_own(replays):
    found = [replays.run("key", [torch.full((2,), float(n)), None], twice)[0] for n in range(CALLS)]
    assert [x.tolist() for x in found] == [[2.0 * n] * 2 for n in range(CALLS)]


def test_a_constant_input_is_copied_once(replays, recorder):
    for n in range(CALLS):
        found = replays.run(
            "key",
            [torch.tensor([float(n)]), torch.tensor([5.0])],
            lambda inputs: [inputs[0] + inputs[1]],
            constant=[1],
        )
        assert found[0].item() == n + 5
        for inputs, _ in recorder.graphs:
            assert inputs[1].item() == 5


def test_what_varies_is_never_captured(replays, recorder):
    for n in range(3 * graphs.REMEMBERED):
        replays.run(n, [torch.ones(2), None], twice)
    assert recorder.log == []
    assert len(replays.seen) == graphs.REMEMBERED


def test_few_graphs_are_kept_and_none_in_use_makes_room(replays, recorder, monkeypatch):
    monkeypatch.setattr(graphs, "IDLE", 4 * graphs.KEPT)
    for _ in range(CALLS):
        for key in range(graphs.KEPT + 1):
            replays.run(key, [torch.ones(2), None], twice)
    assert set(replays.graphs) == set(range(graphs.KEPT))
    for _ in range(4 * graphs.KEPT):
        replays.run(1, [torch.ones(2), None], twice)
    replays.run("late", [torch.ones(2), None], twice)
    replays.run("late", [torch.ones(2), None], twice)
    replays.run("late", [torch.ones(2), None], twice)
    assert set(replays.graphs) == {*range(1, graphs.KEPT), "late"}  # the longest unused has gone
    assert recorder.log.count("capture") == graphs.KEPT


def test_a_failed_capture_is_not_tried_again(replays, recorder):
    recorder.fails = True
    for n in range(CALLS):
        assert replays.run("key", [torch.full((1,), float(n)), None], twice)[0].item() == 2 * n
    assert recorder.log == ["capture first"]
    replays.clear()
    for _ in range(CALLS):
        replays.run("key", [torch.ones(1), None], twice)
    assert recorder.log == ["capture first"]


def test_after_some_failures_none_is_tried(replays, recorder):
    recorder.fails = True
    for key in range(graphs.FAILURES + 3):
        for _ in range(CALLS):
            replays.run(key, [torch.ones(1), None], twice)
    assert len(recorder.log) == graphs.FAILURES


def test_an_error_of_the_computation_is_the_callers(replays, recorder):
    def broken(_):
        raise ZeroDivisionError

    for _ in range(CALLS):
        with pytest.raises(ZeroDivisionError):
            replays.run("key", [torch.ones(1)], broken)
    assert recorder.log == []
    assert not replays.lock.locked()


def test_a_second_thread_computes_for_itself(replays, recorder):
    for _ in range(CALLS):
        replays.run("key", [torch.ones(1), None], twice)
    found, before = [], list(recorder.log)
    with replays.lock:
        run = lambda: found.extend(replays.run("key", [torch.ones(1), None], twice))  # noqa: E731
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert found[0].item() == 2
    assert recorder.log == before


def test_a_limit_of_the_workspace_drops_graphs(replays, monkeypatch):
    monkeypatch.setitem(graphs._devices, torch.device("cpu"), replays)
    for _ in range(CALLS):
        replays.run("key", [torch.ones(1), None], twice)
    assert replays.graphs
    set_workspace_limit(None)
    assert not replays.graphs
    assert not replays.seen


def test_calls_on_a_cpu_are_not_served():
    assert not graphs.serve([torch.ones(2), None], 4)


@pytest.mark.parametrize(
    ("x", "plain"),
    [
        (torch.zeros(4, 32), True),
        (torch.zeros(4, 3, 32)[:, 0], True),  # the first token's rows
        (torch.zeros(32, 4).T, False),
        (torch.zeros(4, 40)[:, :32], False),  # a stride that is no multiple of 16
        (torch.zeros(129)[1:], False),  # nor this address
        (torch.zeros(4)[1], True),
    ],
    ids=["whole", "tokens", "turned", "narrow", "shifted", "number"],
)
def test_which_tensors_a_copy_stands_for(x, plain):
    assert graphs._plain(x) is plain


OPTIONS = {
    "rows": {},
    "symmetric": {"symmetric": True},
    "weights": {"weight": torch.linspace(0.1, 2, 48)},
    "ids": {"query_ids": torch.arange(48) % 9, "key_ids": torch.arange(48) % 9},
    "labels": {"labels": torch.arange(48).flip(0)},
    "rowwise": {"reduction": "none"},
    "hard": {"hard": 2},
    "smoothing": {"label_smoothing": 0.1},
    "unnormalised": {"normalize": False},
}


def step(case, learned):
    """Loss and gradients, of fresh tensors."""
    tensors = [case.query, case.key, case.hard_negatives, case.temperature if learned else None]
    tensors = [None if x is None else x.detach().clone().requires_grad_() for x in tensors]
    query, key, hard, temperature = tensors
    temperature = 0.05 if temperature is None else temperature
    options = case.options | {"temperature": temperature, "hard_negatives": hard}
    loss = info_nce(query, key, **options)
    upstream = torch.linspace(0.5, 2, loss.numel(), device=loss.device).view(loss.shape)
    there = [x for x in tensors if x is not None]
    return [loss.detach(), *torch.autograd.grad(loss, there, upstream)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_loss_hands_over_all_that_varies(name, learned, recorder, monkeypatch):
    """By torch's plan as if it were Triton's: another batch of the same shapes, replayed."""
    options = dict(OPTIONS[name])
    hard = options.pop("hard", 0)
    cases = [random_case(48, width=16, hard=hard, seed=i, **options) for i in range(2)]
    for label in ("weight", "labels", "query_ids"):
        if label in options:
            cases[1].options[label] = options[label].roll(1)
    expected = [step(case, learned) for case in cases]
    replays = graphs.Replays(recorder)
    monkeypatch.setenv("SIMCSE_FAST_CUDA_GRAPHS", "1")
    monkeypatch.setattr(graphs, "serve", lambda *_: True)
    monkeypatch.setattr(graphs, "of", lambda _: replays)
    monkeypatch.setattr(autograd, "_quickest", as_triton(autograd._quickest))
    for n in range(2 * CALLS):
        assert same(step(cases[n % 2], learned), expected[n % 2])
    assert recorder.log.count("replay") >= CALLS


def as_triton(quickest):
    """Calls of the plan on a CPU that believe to be Triton's until they are computed."""
    forward = autograd._forward

    def computed(tensors, hard, scale, call):
        return forward(tensors, hard, scale, autograd.replace(call, backend="cpu"))

    def called(tensors, hard, scale, call):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(autograd, "_forward", computed)
            return quickest(tensors, hard, scale, autograd.replace(call, backend="triton"))

    return called


@pytest.fixture
def fresh(monkeypatch):
    """Graphs are on, and none is another test's."""
    monkeypatch.setenv("SIMCSE_FAST_CUDA_GRAPHS", "1")
    set_workspace_limit(None)
    graphs._devices.clear()
    yield
    set_workspace_limit(None)


def kept():
    return list(graphs._devices[torch.device("cuda", 0)].graphs.values())


def cuda_cases(name, dtype, rows=48):
    options = dict(OPTIONS[name])
    hard = options.pop("hard", 0)
    make = lambda i: random_case(rows, width=768, hard=hard, dtype=dtype, seed=i, **options)  # noqa: E731
    return [make(i).on(OnCuda("triton")) for i in range(2)]


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("learned", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", OPTIONS)
def test_replays_are_the_direct_call_bit_for_bit(name, learned, dtype, fresh, monkeypatch):
    cases = cuda_cases(name, dtype)
    monkeypatch.setenv("SIMCSE_FAST_CUDA_GRAPHS", "0")
    expected = [step(case, learned) for case in cases]
    assert not graphs._devices
    monkeypatch.setenv("SIMCSE_FAST_CUDA_GRAPHS", "1")
    for n in range(2 * CALLS):
        assert same(step(cases[n % 2], learned), expected[n % 2])
        if n > CALLS:
            assert kept()
            for graph in kept():  # what a replay does not write itself would show
                for i, x in enumerate([*graph.inputs, *graph.outputs]):
                    if x is not None and i not in graph.constant:
                        x.fill_(torch.nan if x.is_floating_point() else 0)


@on_gpu
def test_panels_are_replayed_too(fresh, monkeypatch):
    cases = cuda_cases("rows", torch.bfloat16, rows=2560)
    monkeypatch.setenv("SIMCSE_FAST_CUDA_GRAPHS", "0")
    expected = [step(case, False) for case in cases]
    monkeypatch.setenv("SIMCSE_FAST_CUDA_GRAPHS", "1")
    for n in range(2 * CALLS):
        assert same(step(cases[n % 2], False), expected[n % 2])
    assert kept()


@on_gpu
def test_streams_take_turns(fresh):
    cases = cuda_cases("symmetric", torch.bfloat16)
    expected = [step(case, False) for case in cases]
    for _ in range(CALLS):
        step(cases[0], False)
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in range(4)], []
    for n in range(40):
        with torch.cuda.stream(streams[n % 4]):
            torch.cuda._sleep(1_000_000 * (n % 3))
            found.append(step(cases[n % 2], False))
    torch.cuda.synchronize()
    assert all(same(x, expected[n % 2]) for n, x in enumerate(found))


@on_gpu
@pytest.mark.parametrize("broken", ["python", "device"])
def test_a_failed_capture_leaves_cuda_as_it_was(broken, fresh):
    device = torch.device("cuda", 0)
    replays, x = graphs.of(device), torch.ones(4, device=device)

    def compute(inputs):
        if torch.cuda.is_current_stream_capturing():
            if broken == "python":
                raise ValueError
            inputs[0].sum().item()
        return [inputs[0] * 2]

    torch.cuda.manual_seed(0)
    before = torch.randn(3, device=device)
    torch.cuda.manual_seed(0)
    stream = torch.cuda.current_stream()
    for _ in range(CALLS):
        assert replays.run("key", [x], compute)[0].tolist() == [2.0] * 4
    assert torch.cuda.current_stream() == stream
    assert torch.equal(torch.randn(3, device=device), before)
    for _ in range(CALLS):  # another capture succeeds
        assert replays.run("other", [x], lambda inputs: [inputs[0] + 1])[0].tolist() == [2.0] * 4
    assert set(replays.graphs) == {"other"}


@on_gpu
@pytest.mark.parametrize("watched", ["capture", "anomaly", "deterministic"])
def test_direct_where_somebody_watches(watched, fresh):
    case = cuda_cases("rows", torch.bfloat16)[0]
    step(case, False)
    if watched == "capture":
        for _ in range(CALLS):
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                step(case, False)
    elif watched == "anomaly":
        with torch.autograd.set_detect_anomaly(True):
            for _ in range(CALLS):
                step(case, False)
    else:
        torch.use_deterministic_algorithms(True)
        try:
            for _ in range(CALLS):
                step(case, False)
        finally:
            torch.use_deterministic_algorithms(False)
    assert not kept()
