"""Cutting a batch into mini-batches: nothing lost, nothing changed, nothing over its limits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simcse_fast.minibatches import Pool, pools, real_tokens, rows_of

ONE = object()  # the kind of a single tower


def padded(lengths: list[int], width: int | None = None, first: int = 1, **more) -> dict:
    """Tokens that are all different, counted from `first`, padded on the right with 0."""
    width = max(lengths) if width is None else width
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = torch.zeros(len(lengths), width, dtype=torch.int64)
    ids[mask] = torch.arange(first, first + int(mask.sum()))
    return {"input_ids": ids, "attention_mask": mask.long(), **more}


def flat(lengths: list[int]) -> dict:
    """What transformers' DataCollatorWithFlattening gives."""
    ends = torch.tensor([0, *lengths]).cumsum(0)
    count = int(ends[-1])
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return {
        "input_ids": torch.arange(1, count + 1)[None],
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": ends.int(),
        "cu_seq_lens_k": ends.int(),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "seq_idx": rows[None].int(),
    }


def tokens_of(features: dict) -> list[list[int]]:
    """The real tokens of each row."""
    pairs = zip(features["input_ids"], features["attention_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=24)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(LENGTHS, min_size=1, max_size=3),
    st.none() | st.integers(1, 60),
    st.none() | st.integers(1, 9),
    st.integers(0, 4),
    st.sampled_from([0.5, 0.75, 1.0]),
)
def test_mini_batches_are_a_partition_within_their_limits(columns, tokens, size, spare, full):
    features, first = [], 1
    for lengths in columns:
        features.append(padded(lengths, max(lengths) + spare, first))
        first += sum(lengths)
    pool = Pool(features)
    every = [row for column in features for row in tokens_of(column)]
    found = pool.minibatches(tokens, size, full)
    assert sorted(torch.cat([x.rows for x in found]).tolist()) == list(range(len(every)))
    for one in found:
        assert size is None or len(one.rows) <= size
        assert tokens is None or one.padded_tokens <= tokens or len(one.rows) == 1
        selected = pool.select(one)
        assert selected["input_ids"].shape == (len(one.rows), one.width)
        assert tokens_of(selected) == [every[row] for row in one.rows]
        assert one.width == max(len(every[row]) for row in one.rows)
    widths = [x.width for x in found]
    assert widths == sorted(widths, reverse=True)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.none() | st.integers(1, 60), st.none() | st.integers(1, 9))
def test_flat_tokens_are_those_of_their_rows(lengths, tokens, size):
    column = flat(lengths)
    pool = Pool([column])
    samples = column["input_ids"][0].split(lengths)
    seen = []
    for one in pool.minibatches(tokens, size):
        selected = pool.select(one)
        mine = [lengths[row] for row in one.rows]
        seen += one.rows.tolist()
        expected = torch.cat([samples[row] for row in one.rows])[None]
        assert torch.equal(selected["input_ids"], expected)
        by_hand = flat(mine)
        for name in column.keys() - {"input_ids"}:
            if isinstance(by_hand[name], int):
                assert selected[name] == by_hand[name]
            else:
                assert selected[name].dtype == column[name].dtype
                assert torch.equal(selected[name], by_hand[name])
    assert sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize(("begin", "end"), [(0, 2), (1, 4), (3, 5), (0, 5)])
@pytest.mark.parametrize("kind", [flat, padded])
def test_ranges_of_rows_are_those_of_sentence_transformers(kind, begin, end):
    gradcache = pytest.importorskip("sentence_transformers.base.losses.gradcache")
    column = kind([7, 2, 5, 1, 3])
    theirs = gradcache._create_minibatch(column, begin, end)
    pool = Pool([column])
    rows = torch.arange(begin, end)
    [whole] = pool.minibatches(None, None)
    width = int(pool.lengths[rows].max())
    ours = pool.select(type(whole)(rows, width))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == value if isinstance(value, int) else torch.equal(ours[name], value)


def test_columns_alike_share_mini_batches_and_others_do_not():
    base = padded([3, 2])
    masked = padded([4, 1], width=6)
    left = {
        "input_ids": torch.tensor([[0, 1, 2, 3, 4]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1, 1]]),
    }
    assert pools([base, masked], [ONE, ONE]) == [[0, 1]]
    assert pools([base, masked], [ONE, object()]) == [[0], [1]]  # of different towers
    named = [{**base, "task": "query"}, {**masked, "task": "document"}, {**base, "task": "query"}]
    assert pools(named, [ONE] * 3) == [[0, 2], [1]]
    assert pools([{**base, "task": "query"}, base], [ONE] * 2) == [[0], [1]]
    numbered = [{**base, "task": torch.tensor(number)} for number in (0, 1, 0)]
    assert pools(numbered, [ONE] * 3) == [[0, 2], [1]]
    # Another dtype, another number of dimensions, another width of what is no token.
    assert pools([base, {**base, "attention_mask": base["attention_mask"].bool()}], [ONE] * 2) == [
        [0],
        [1],
    ]
    assert pools([torch.ones(3, 4), torch.ones(2, 4)], [ONE] * 2) == [[0, 1]]
    assert pools([torch.ones(3, 4), torch.ones(2, 5)], [ONE] * 2) == [[0], [1]]
    assert pools([torch.ones(3, 4), base], [ONE] * 2) == [[0], [1]]
    # Padding that nothing masks is read as tokens; on the left it sets positions.
    bare = [{"input_ids": torch.ones(2, width, dtype=torch.int64)} for width in (3, 3, 5)]
    assert pools(bare, [ONE] * 3) == [[0, 1], [2]]
    assert pools([left, base], [ONE] * 2) == [[0], [1]]
    assert pools([left, left], [ONE] * 2) == [[0, 1]]
    assert pools([flat([2, 1]), flat([2, 1])], [ONE] * 2) == [[0], [1]]  # lists end to end


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        pytest.param(3, 3, True, id="same-number"),
        pytest.param(3, 4, False, id="other-number"),
        pytest.param(torch.tensor([3]), torch.tensor([3]), True, id="same-tensor-of-one"),
        pytest.param(torch.tensor([3]), torch.tensor([4]), False, id="other-tensor-of-one"),
        # Of the whole batch, although it has a row a sample: kept whole.
        pytest.param(torch.tensor([3, 3]), torch.tensor([3, 3]), True, id="same-by-row"),
        pytest.param(torch.tensor([3, 3]), torch.tensor([4, 4]), False, id="other-by-row"),
        pytest.param(3, torch.tensor([3]), False, id="number-and-tensor"),
    ],
)
def test_lengths_of_prompts_hold_for_a_whole_column(one, other, together):
    columns = [padded([3, 2], prompt_length=one), padded([4, 2], prompt_length=other)]
    assert rows_of(columns[0]) == 2
    assert pools(columns, [ONE, ONE]) == ([[0, 1]] if together else [[0], [1]])
    pool = Pool(columns[:1])
    for part in pool.minibatches(None, 1):
        assert pool.select(part)["prompt_length"] is one


def test_what_comes_with_the_tokens_is_cut_like_them():
    column = padded([5, 2, 3])
    column |= {
        "token_type_ids": torch.arange(15).view(3, 5),
        "vectors": torch.arange(30.0).view(3, 5, 2),  # of tokens
        "picture": torch.arange(12.0).view(3, 4),  # of samples
        "number": torch.tensor(7),
        "name": "x",
    }
    pool = Pool([column])
    long, short = pool.minibatches(None, 2)
    assert long.rows.tolist() == [0, 2]
    assert short.rows.tolist() == [1]
    selected = pool.select(short)
    for name in ("input_ids", "attention_mask", "token_type_ids", "vectors"):
        assert torch.equal(selected[name], column[name][1:2, :2])
    assert torch.equal(selected["picture"], column["picture"][1:2])
    assert selected["number"] is column["number"]
    assert selected["name"] == "x"


def test_padding_is_trimmed_on_the_right_only():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]])
    pool = Pool([{"input_ids": torch.ones(4, 4, dtype=torch.int64), "attention_mask": mask}])
    # Up to the last token; a row without any stands for itself; holes in between stay.
    assert pool.lengths.tolist() == [4, 2, 1, 3]
    trimmed = pool.select(pool.minibatches(None, 1)[-1])
    assert trimmed["attention_mask"].tolist() == [[0]]


def test_masks_of_three_dimensions_are_left_alone():
    mask = torch.ones(2, 3, 3)
    pool = Pool([{"input_ids": torch.ones(2, 3, dtype=torch.int64), "attention_mask": mask}])
    [one, other] = pool.minibatches(None, 1)
    assert pool.select(one)["attention_mask"].shape == (1, 3, 3)
    assert sorted([*one.rows.tolist(), *other.rows.tolist()]) == [0, 1]


def test_bags_are_never_cut():
    bag = {"input_ids": torch.arange(6), "offsets": torch.tensor([0, 2, 5])}
    [whole] = (pool := Pool([bag])).minibatches(1, 1)
    assert whole.rows.tolist() == [0, 1, 2]
    selected = pool.select(whole)
    assert selected == bag
    selected["sentence_embedding"] = None  # a module adds to the features it is given
    assert "sentence_embedding" not in bag


def test_what_an_encoder_does_to_its_features_does_not_come_back():
    column = padded([3, 2])
    pool = Pool([column])
    [whole] = pool.minibatches(None, None)
    pool.select(whole)["attention_mask"].zero_()
    assert tokens_of(pool.select(whole)) == [[1, 2, 3], [4, 5]]


def test_tokens_as_counted_by_hand():
    assert real_tokens(padded([3, 1, 2], width=8)) == 6
    assert real_tokens({"input_ids": torch.ones(2, 5)}) == 10
    assert real_tokens(flat([3, 1, 2])) == 6
    assert real_tokens(torch.ones(4, 9)) == 4
    lengths = [9, 1, 9, 1, 9, 1]
    pool = Pool([padded(lengths)])
    assert sum(x.padded_tokens for x in pool.minibatches(None, 2)) == 9 + 9 + 9 + 9 + 1 + 1
    unsorted = [max(lengths[n : n + 2]) * 2 for n in range(0, 6, 2)]
    assert sum(unsorted) == 54


def test_no_mini_batch_spends_its_tokens_on_rows_it_could_not_hold():
    pool = Pool([padded([9, 4, 4, 4, 1])])
    assert [x.rows.tolist() for x in pool.minibatches(8, None)] == [[0], [1, 2], [3, 4]]
    assert [x.rows.tolist() for x in pool.minibatches(1, None)] == [[0], [1], [2], [3], [4]]


def test_each_mini_batch_holds_less_than_the_one_before_until_it_would_not_be_full():
    pool = Pool([padded([8] * 30 + [7] * 20 + [6] * 25)])
    held = [x.padded_tokens for x in pool.minibatches(64, None, 0.75)]
    assert held == [64, 56, 48, 64, 56, 49, 63, 60, 54, 24]  # of rows of 8, 8, 8, 8, 8, 7, 7, 6 ...


def test_pools_of_a_tower_stand_together_whatever_the_columns():
    wide, narrow = ({"input_ids": torch.ones(2, width, dtype=torch.int64)} for width in (5, 3))
    other = object()
    assert pools([wide, wide, wide], [ONE, other, ONE]) == [[0, 2], [1]]
    assert pools([wide, wide, narrow], [ONE, other, ONE]) == [[0], [2], [1]]
