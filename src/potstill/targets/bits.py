"""Numbers as bits and back, without a loop over them.

Shape letters of this file:
    M  numbers

Bits are written from the most significant of a byte on; the last byte is filled with zeros.
"""

from __future__ import annotations

import numpy as np

MAX_WIDTH = 24
"""Most bits of a field: with the up to seven bits before it, it fits into 32."""


def pack_fields(values_M: np.ndarray, widths_M: np.ndarray) -> bytes:
    """Each number in as many bits as its width says; 0 bits are none at all."""
    widths_M = widths_M.astype(np.int64)
    assert not values_M.size or (values_M >> widths_M).max() == 0, "a number is too wide"
    ends_M = np.cumsum(widths_M)
    num_bits = int(ends_M[-1]) if len(ends_M) else 0
    shifts = np.repeat(ends_M - 1, widths_M) - np.arange(num_bits)
    return np.packbits((np.repeat(values_M, widths_M) >> shifts) & 1).tobytes()


def unpack_fields(data: np.ndarray, widths_M: np.ndarray) -> np.ndarray:
    """The numbers [M] int64 that `pack_fields` wrote at the start of `data` (uint8)."""
    widths_M = widths_M.astype(np.int64)
    ends_M = np.cumsum(widths_M)
    starts_M = ends_M - widths_M
    padded = np.concatenate([data[: num_bytes(widths_M)], np.zeros(4, np.uint8)]).astype(np.int64)
    windows = padded[:-3] << 24 | padded[1:-2] << 16 | padded[2:-1] << 8 | padded[3:]
    return (windows[starts_M >> 3] >> (32 - (starts_M & 7) - widths_M)) & ((1 << widths_M) - 1)


def num_bytes(widths_M: np.ndarray) -> int:
    """Length of what `pack_fields` writes."""
    return (int(widths_M.sum()) + 7) // 8


def pack_unary(values_M: np.ndarray) -> bytes:
    """Each number as that many zeros and a one."""
    ends_M = np.cumsum(values_M + 1)
    bits = np.zeros(int(ends_M[-1]) if len(ends_M) else 0, np.uint8)
    bits[ends_M - 1] = 1
    return np.packbits(bits).tobytes()


def unpack_unary(data: np.ndarray, num: int) -> tuple[np.ndarray, int]:
    """The first `num` numbers, int64, that `pack_unary` wrote, and the bytes they take."""
    if num == 0:
        return np.zeros(0, np.int64), 0
    places_M = np.flatnonzero(np.unpackbits(data))[:num]
    assert len(places_M) == num, (len(places_M), num)
    return np.diff(places_M, prepend=-1) - 1, int(places_M[-1]) // 8 + 1
