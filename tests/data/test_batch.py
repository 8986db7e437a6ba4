import pytest
import torch

from potstill.data.batch import collate, fill_bins, pack, plan_batches
from potstill.data.render import Rendered


def test_padding_is_on_the_right_and_carries_nothing():
    batch = collate([Rendered([5, 6, 7], [0, 1, 1]), Rendered([8], [1])], pad_id=2, rows=[4, 9])
    assert batch.ids_BT.tolist() == [[5, 6, 7], [8, 2, 2]]
    assert batch.loss_mask_BT.tolist() == [[False, True, True], [True, False, False]]
    assert batch.attention_BT.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.position_BT.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch.rows == (4, 9)
    assert batch.ids_BT.dtype == torch.int64
    assert batch.loss_mask_BT.dtype == torch.bool


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        collate([], pad_id=0)


def test_every_record_is_in_one_step_and_only_the_last_step_is_short():
    batches = plan_batches([i % 17 + 1 for i in range(103)], 8, seed=0, epoch=0)
    assert sorted(row for batch in batches for row in batch) == list(range(103))
    assert [len(batch) for batch in batches] == [8] * 12 + [7]


def test_a_plan_depends_on_seed_and_epoch_only():
    lengths = [i % 17 + 1 for i in range(50)]
    plan = plan_batches(lengths, 4, seed=3, epoch=1)
    assert plan == plan_batches(lengths, 4, seed=3, epoch=1)
    assert plan != plan_batches(lengths, 4, seed=3, epoch=2)
    assert plan != plan_batches(lengths, 4, seed=4, epoch=1)


def test_records_of_like_length_share_a_step():
    lengths = [10 if i % 2 else 200 for i in range(200)]
    batches = plan_batches(lengths, 10, seed=0, epoch=0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


def test_no_records_make_no_steps():
    assert plan_batches([], 4, seed=0, epoch=0) == []


def test_packed_sequences_stand_in_one_row_and_count_anew():
    batch = pack([Rendered([5, 6, 7], [0, 1, 1]), Rendered([8, 9], [1, 1])])
    assert batch.ids_BT.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_BT.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.loss_mask_BT.tolist() == [[False, True, True, False, True]]
    with pytest.raises(ValueError, match="at least one"):
        pack([])


def test_bins_hold_every_sequence_once_and_little_is_left_empty():
    lengths = [(37 * i) % 61 + 3 for i in range(80)]
    bins = fill_bins(lengths, 100)
    assert sorted(place for one in bins for place in one) == list(range(80))
    assert max(sum(lengths[place] for place in one) for one in bins) <= 100
    assert len(bins) <= 1.1 * sum(lengths) / 100 + 1
    assert max(map(len, fill_bins(lengths, 100, most=3))) == 3


def test_a_sequence_longer_than_a_bin_has_one_of_its_own():
    assert fill_bins([4, 30, 5], 10) == [[1], [2, 0]]


def test_a_padded_bin_costs_its_longest_sequence_each_time():
    lengths = [3, 9, 4, 8, 2, 9, 3]
    bins = fill_bins(lengths, 20, padded=True)
    assert sorted(place for one in bins for place in one) == list(range(7))
    assert all(len(one) * max(lengths[place] for place in one) <= 20 for one in bins)
    assert [[lengths[place] for place in one] for one in bins] == [[9, 9], [8, 4], [3, 3, 2]]


def test_steps_can_be_drawn_at_random():
    lengths = [10 if i % 2 else 200 for i in range(200)]
    batches = plan_batches(lengths, 10, seed=0, epoch=0, by_length=False)
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    mixed = [batch for batch in batches if len({lengths[i] for i in batch}) == 2]
    assert len(mixed) > 15
