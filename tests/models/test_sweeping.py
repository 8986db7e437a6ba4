"""The search for cycles is put off while asking, and is as it was afterwards."""

import gc
import weakref

import pytest

from potstill.models.sweeping import not_swept, seldom_swept


class Ring:
    """A cycle of one."""

    def __init__(self):
        self.me = self


def test_cycles_are_still_found_now_and_then():
    with seldom_swept():
        watched = weakref.ref(Ring())
        kept = [[] for _ in range(60_000)]
        assert watched() is None, len(kept)


def test_few_objects_set_nothing_off():
    swept = []
    gc.callbacks.append(lambda phase, info: swept.append(phase))
    try:
        with seldom_swept():
            swept.clear()
            kept = [[] for _ in range(10_000)]
            assert not swept, len(kept)
    finally:
        gc.callbacks.pop()


@pytest.mark.parametrize("calm", [not_swept, seldom_swept])
def test_a_failure_leaves_it_as_it_was(calm):
    before = gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()
    with pytest.raises(ValueError), calm():
        raise ValueError
    assert (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()) == before


def test_the_last_to_leave_leaves_it_as_the_first_found_it():
    before = gc.get_threshold()
    one, two = seldom_swept(), seldom_swept()
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert gc.get_threshold() != before and gc.get_freeze_count() > 0
    two.__exit__(None, None, None)
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
