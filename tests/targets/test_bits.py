"""Bits come back as the numbers they were."""

import numpy as np
import pytest

from potstill.targets.bits import (
    MAX_WIDTH,
    num_bytes,
    pack_fields,
    pack_unary,
    unpack_fields,
    unpack_unary,
)


def as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def test_fields_of_every_width_come_back():
    generator = np.random.default_rng(0)
    widths = np.concatenate([np.arange(MAX_WIDTH + 1), generator.integers(0, MAX_WIDTH + 1, 999)])
    values = generator.integers(0, 1 << 62, len(widths)) & ((1 << widths) - 1)
    data = pack_fields(values, widths)
    assert len(data) == num_bytes(widths) == (widths.sum() + 7) // 8
    assert np.array_equal(unpack_fields(as_array(data + b"\xff\xff"), widths), values)


def test_the_largest_number_of_a_width_at_every_place_in_a_byte_comes_back():
    for before in range(8):
        widths = np.array([before, MAX_WIDTH])
        values = (1 << widths) - 1
        found = unpack_fields(as_array(pack_fields(values, widths)), widths)
        assert np.array_equal(found, values)


def test_unary_numbers_take_their_value_and_one_bit():
    values = np.array([0, 3, 0, 0, 17, 6])
    data = pack_unary(values)
    assert len(data) == (values.sum() + len(values) + 7) // 8
    found, used = unpack_unary(as_array(data + b"\xff"), len(values))
    assert np.array_equal(found, values)
    assert used == len(data)


def test_nothing_takes_no_room():
    nothing = np.zeros(0, np.int64)
    assert pack_fields(nothing, nothing) == pack_unary(nothing) == b""
    assert len(unpack_fields(as_array(b""), nothing)) == 0
    assert unpack_unary(as_array(b""), 0)[1] == 0


def test_a_number_too_wide_for_its_field_is_our_own_mistake():
    with pytest.raises(AssertionError, match="too wide"):
        pack_fields(np.array([4]), np.array([2]))
