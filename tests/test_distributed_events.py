"""Ranks that do not fit together, are lost or late, share a group, DDP, or a compiled step."""

from __future__ import annotations

import re

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch was built without torch.distributed", allow_module_level=True)

pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")

import distributed_events as events
import processes

from simcse_fast import info_nce

WORLD = 3


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What three ranks did in all scenes that lose no rank."""
    return processes.run(WORLD, events.together, tmp_path_factory.mktemp("together"))


REFUSED = (
    r"ValueError: process_group: rank 1 refused the arguments before anything was gathered; "
    r"the error raised there says why\."
)
SAME = (
    r"ValueError: {}: expected the same on all ranks of process_group, "
    r"got {} on ranks 0, 2, {} on rank 1\."
)


@pytest.mark.parametrize(
    ("name", "message", "own"),
    [
        ("width", SAME.format(r"key\.shape\[1\]", 4, 5), ""),
        ("dtype", SAME.format(r"key\.dtype", r"torch\.float32", r"torch\.float64"), ""),
        ("symmetric", SAME.format("symmetric", False, True), ""),
        ("ids", SAME.format("query_ids is not None", True, False), ""),
        ("temperature", SAME.format(r"temperature\.requires_grad", False, True), ""),
        ("gradients", SAME.format(r"torch\.is_grad_enabled\(\)", True, False), ""),
        ("refused", REFUSED, r"ValueError: labels: 1 of 3 values are outside \[0, 3\)"),
        ("refused-type", REFUSED, r"TypeError: query: expected a tensor, got str"),
        ("refused-finite", REFUSED, r"ValueError: query: 3 of 3 rows hold NaN or infinity"),
        (
            "no-rows",
            r"ValueError: process_group: expected at least one row .* got none on all 3\.",
            "",
        ),
    ],
)
def test_ranks_that_do_not_fit_raise_the_same_everywhere(found, name, message, own):
    messages = [one["mismatches"][name] for one in found]
    assert messages[0] == messages[2]
    assert re.match(message, messages[0]), messages[0]
    if not own:
        assert messages[1] == messages[0]
    else:
        assert re.match(own, messages[1]), messages[1]


def test_after_an_error_the_ranks_are_in_step(found):
    # Nine keys, of which three equal each query: log 3.
    assert [one["mismatches"]["afterwards"] for one in found] == ["1.098612"] * WORLD


def test_a_rank_whose_keys_are_constants_takes_part_in_the_others_gradients(found):
    parts = [one["own_gradient_unwanted"] for one in found]
    query, keys = events.rows(3), [events.rows(4) for _ in range(WORLD)]
    first = torch.cat(keys)
    loss = sum(
        info_nce(query, first, labels=torch.arange(3) + 4 * rank, temperature=0.5)
        for rank in range(WORLD)
    )
    gradients = torch.autograd.grad(loss, keys)
    assert parts[0]["key"] is None
    for rank in (1, 2):
        torch.testing.assert_close(parts[rank]["key"], gradients[rank], rtol=1e-5, atol=1e-7)
    for rank, part in enumerate(parts):
        again = events.rows(3)
        own = info_nce(again, first, labels=torch.arange(3) + 4 * rank, temperature=0.5)
        assert part["value"].item() == pytest.approx(own.item(), rel=1e-6)
        (expected,) = torch.autograd.grad(own, again)  # with own keys, and with constant ones
        torch.testing.assert_close(part["query"], 2 * expected, rtol=1e-5, atol=1e-7)


def test_second_derivatives_raise(found):
    for one in found:
        assert one["second_derivative"].startswith(
            "RuntimeError: second derivatives are not implemented"
        )


def test_a_group_of_some_ranks(found):
    scenes = [one["in_a_subgroup"] for one in found]
    query, key = [torch.cat([events.rows(3), events.rows(5)]).detach() for _ in range(2)]
    query, key = query.requires_grad_(), key.requires_grad_()
    loss = info_nce(query, key, temperature=0.5)
    loss.backward()
    members = scenes[0], scenes[2]
    mean = torch.stack([one["loss"] for one in members]).mean()
    assert mean.item() == pytest.approx(loss.item(), rel=1e-6)
    for name, x in (("query", query), ("key", key)):
        joined = torch.cat([one[name] for one in members]) / 2
        torch.testing.assert_close(joined, x.grad, rtol=1e-5, atol=1e-7)
    assert scenes[1]["error"] == (
        "ValueError: process_group: rank 1 is not in this group; only its members may call the "
        "loss."
    )
    for one in members:  # ranks as the whole world counts them
        assert "got 4 on rank 0, 5 on rank 2" in one["error"]
    for rank, one in enumerate(scenes):
        own = events.rows(3 + rank)
        assert one["alone"].item() == info_nce(own, own, temperature=0.5).item()


@pytest.mark.parametrize("number", range(len(events.SPLITS)))
def test_ddp_gives_the_gradients_of_one_process(found, number):
    step = events.Step(None)
    step(*events.inputs()).backward()
    for one in found:
        for name, x in step.named_parameters():
            torch.testing.assert_close(
                one["data_parallel"][number][name], x.grad, rtol=1e-11, atol=1e-13
            )


def test_the_same_bits_from_run_to_run(found):
    for one in found:
        first, *others = one["repeated"]
        assert all(all(map(torch.equal, first, other)) for other in others)


def test_compiled_steps_break_the_graph_at_the_loss(found):
    for one in found:
        scene = one["compiled"]
        assert all(map(torch.equal, scene["compiled"], scene["eager"]))
        assert scene["clip"]
        assert scene["views"]
        assert scene["ranking"]
        assert scene["whole"].startswith("Unsupported: Skip inlining")


@pytest.fixture(scope="module")
def waited(tmp_path_factory):
    """What ranks 0 and 2 see while rank 1 is late, and after it was killed."""
    return processes.run(WORLD, events.waiting_for_a_rank, tmp_path_factory.mktemp("waiting"))


@pytest.mark.parametrize(
    ("scene", "what", "least"),
    [
        ("loss", "exchanging the sizes of the batch", events.PATIENCE),
        ("backward", "returning the gradients of the keys", events.PATIENCE),
        ("killed", "exchanging the sizes of the batch", 0),  # the connection is closed at once
    ],
)
def test_a_lost_or_late_rank_is_an_error_in_time(waited, scene, what, least):
    assert isinstance(waited[1], processes.Lost)
    for rank in (0, 2):
        seen = waited[rank][scene]
        assert re.fullmatch(
            rf"RuntimeError: process_group: {what} failed on rank {rank} of 3: "
            r"a rank was lost or late \(.*\)\.",
            seen["error"],
        ), seen["error"]
        assert 0.9 * least <= seen["seconds"] < least + 30


def test_a_rank_that_is_killed_before_its_gradients(tmp_path):
    results = processes.run(WORLD, events.killed_before_its_gradients, tmp_path / "killed")
    for rank in (0, 2):
        message = "returning the gradients of the keys failed on rank"
        assert message in results[rank]["error"], results[rank]
        assert results[rank]["seconds"] < 30


@pytest.mark.parametrize("outside", [pytest.param(-100, id="non-member"), "world"])
def test_without_a_group_the_error_says_what_to_call(outside):
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised; call"):
        info_nce(torch.eye(3), torch.eye(3), process_group=outside)
