"""Which rank the others wait for, from what is known of each: their beats and the collectives that they have begun."""

from prenorm.distributed.process_state import Identity
from prenorm.distributed.suspects import Beat, Seen, Spot, culprit

WAITS, FAILED = Beat(is_waiting=True), Beat(is_cut_off=True)


def named(*beats, silent=None, seconds=0.0, moves=None):
    """With a beat a second, and a timeout of ten."""
    seen = [Seen(Identity("", rank, ""), None, 0.0, beat=beat) for rank, beat in enumerate(beats)]
    for one, number in zip(seen, moves or [0] * len(seen), strict=True):
        one.spot = Spot(moves=number)
    return culprit(seen, silent or [1.0] * len(seen), interval=1.0, timeout=10.0, seconds=seconds)


def begun(number, other=7):
    """In a call that does not show in Python; collectives begun in two groups."""
    return Beat(calls={"dp of rank 0": number, "": other})


def test_it_is_the_one_that_waits_for_nobody():
    assert named(WAITS, FAILED, Beat(), WAITS) == 2


def test_of_those_that_do_not_show_it_the_one_with_fewer_collectives_is_waited_for():
    assert named(begun(5), begun(5), begun(5), begun(4)) == 3
    assert named(begun(5), begun(4), begun(5), begun(5)) == 1


def test_groups_of_other_ranks_are_not_compared():
    other = Beat(calls={"dp of rank 1": 2})
    assert named(other, begun(5), begun(4), other, seconds=3.0) == 0
    assert named(Beat(is_waiting=True, calls={"dp of rank 1": 2}), begun(5), begun(4)) == 2


def test_with_several_of_them_nobody_is_named_before_a_few_beats():
    assert named(WAITS, Beat(), Beat()) is None
    assert named(WAITS, FAILED, WAITS) is None
    assert named(Beat(), Beat(), Beat(), moves=[4, 5, 3], seconds=3.0) == 2


def test_one_that_was_silent_before_the_others_began_to_wait_is_it_whatever_its_last_beat_was():
    assert named(Beat(), WAITS, FAILED, silent=[1.0, 9.0, 1.0]) == 1


def test_one_that_was_stopped_for_a_moment_is_not_named_for_one_that_hangs():
    assert named(WAITS, Beat(), Beat(), silent=[1.0, 1.0, 4.0]) == 1


def test_one_that_is_silent_is_named_where_all_others_wait():
    assert named(WAITS, Beat(), FAILED, silent=[1.0, 4.0, 1.0]) is None
    assert named(WAITS, Beat(), FAILED, silent=[1.0, 4.0, 1.0], seconds=3.0) == 1
