"""How far long work is: shares of a whole, and the words of an interruption."""

import pytest

from unscanned.errors import Interrupted
from unscanned.progress import interruptible, shares


def test_the_parts_of_a_work_move_the_whole_on_by_what_they_cost():
    told = []
    first, nothing, last = shares(lambda *now: told.append(now), [1, 0, 3])
    first(1, 2, "a")
    first(2, 2, "b")
    nothing(5, 5, "c")
    last(1, 3, "d")
    last(3, 3, "e")
    assert [label for _, _, label in told] == list("abcde")
    assert [done / total for done, total, _ in told] == pytest.approx([0.125, 0.25, 0.25, 0.5, 1])
    assert len({total for _, total, _ in told}) == 1
    assert shares(None, [1, 2]) == [None, None]
    shares(lambda *now: told.append(now), [0.0])[0](0, 0, "nothing to do")


def test_an_interruption_speaks_of_the_part_in_its_own_units():
    (part,) = shares(lambda *now: None, [1])
    with pytest.raises(Interrupted, match="sub-003: 2 of 8"):
        interruptible(part, lambda: True, "out")(2, 8, "sub-003")
