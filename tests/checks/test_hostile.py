"""Hostile submissions, some of them: PRENORM_HOSTILE=all (or `python -m tests.checks.hostile`) runs every one."""

import os
import sys
from collections.abc import Iterator

import pytest

from .corpus import right
from .hostile.__main__ import ALL
from .hostile.canaries import Canaries, adopting_orphans
from .hostile.harness import SECONDS, passes, run
from .hostile.submission import Submission

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are Linux's")

SOME = """
    processes/fork_bomb processes/daemon processes/subprocess processes/clone3 processes/threads_without_end
    reads/open reads/symbolic_link reads/parent_environ reads/environment reads/our_package_after_all
    writes/new_file writes/hard_link_out writes/chmod writes/utime_under_test writes/truncate_by_reading
    writes/shared_memory
    network/tcp network/udp network/unix network/abstract network/netlink
    memory/tensors memory/memfd memory/recursion disk/many_files disk/descriptors
    floods/stdout floods/replies floods/a_reply_that_never_ends
    endless/at_import endless/huge_power endless/in_an_exceptions_text
    signals/kill_a_stranger signals/ignore_everything signals/owner_of_a_descriptor
    exits/sys_exit exits/exit_at_once exits/null_pointer exits/thirty_two_bit_call exits/strange_syntax_error
    escapes/unshare escapes/ptrace_the_parent escapes/io_uring
    printed/verdict_and_exit replies/replies_in_advance replies/nested_without_end replies/reply_with_a_verdict
    patches/allclose patches/driver_echoes_the_input patches/inputs_found_and_zeroed patches/our_package_replaced
    lies/object_that_is_equal_to_all lies/tensor_that_claims_equality lies/nan lies/meta lies/shape_of_lies
    classes/right_name_from_elsewhere classes/names_with_escape_codes classes/default_that_is_huge
""".split()  # noqa: SIM905  # one list item a line would fill two screens
IS_EVERYTHING = os.environ.get("PRENORM_HOSTILE") == "all"
LIMIT = SECONDS if IS_EVERYTHING else 2.0
LATE = 15.0  # other tests run beside these, with processes of their own; what never ends is late by any measure
BY_NAME = {one.name: one for one in ALL}
CHOSEN = ALL if IS_EVERYTHING else [BY_NAME[name] for name in SOME]

RIGHT = next(one for one in right() if one.name == "course/right").source


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    with adopting_orphans():
        made = Canaries(tmp_path_factory.mktemp("canaries"))
        yield made
        made.close()


@pytest.mark.sampled(5)
@pytest.mark.parametrize("submission", CHOSEN, ids=lambda one: one.name)
def test_it_neither_escapes_nor_passes_nor_comes_late(submission: Submission, canaries: Canaries) -> None:
    assert run(submission, canaries, limit=LIMIT, late=LATE).wrong == []


def test_a_right_block_does_pass(canaries: Canaries) -> None:
    file = canaries.submissions / "right.py"
    file.write_text(RIGHT)
    passed, said = passes(file, 60)
    file.unlink()
    assert passed, said


@pytest.mark.long
def test_the_canaries_notice_what_no_layer_stops(canaries: Canaries) -> None:
    layers = ("namespaces", "mounts", "landlock", "seccomp")
    for name in ("reads/open", "writes/new_file", "network/tcp", "network/abstract", "signals/kill_a_stranger"):
        assert run(BY_NAME[name], canaries, without=layers).wrong != []


def test_there_are_at_least_200_and_no_two_are_the_same() -> None:
    assert len(BY_NAME) == len(ALL) >= 200
    assert len({(one.code, one.phase) for one in ALL}) == len(ALL)
