"""An error in one line."""

import pytest

from prenorm.checks.probes.case import SHOWN, in_short

EINOPS = """\
 Error while processing rearrange-reduction pattern "b s (h d) -> b h s d".
 Input tensor shape: torch.Size([2, 7, 32]). Additional info: {'h': 5}.
 Shape mismatch, can't divide axis of length 32 in chunks of 5"""
JAXTYPING = """\
Type-check error whilst checking the return value of Block.forward.
Actual value: f32[2,7,32](torch)
Expected type: Float[Tensor, 'b s'].
----------------------
Called with parameters: {'x': f32[2,7,32](torch)}"""
CUDA = "index out of range\nException raised from check at Tensor.cpp:10 (most recent call first):\nframe #0: ..."
LISTING = "the code that was generated failed:\n" + "  a = b + c\n" * 50 + "The error was: ValueError: too short"


@pytest.mark.parametrize(
    ("message", "begins", "ends"),
    [
        (EINOPS, "Error while processing", "can't divide axis of length 32 in chunks of 5"),
        (JAXTYPING, "Type-check error whilst", "f32[2,7,32](torch) Expected type: Float[Tensor, 'b s']."),
        (CUDA, "index out of range", "index out of range"),
        (LISTING, "the code that was generated failed:", "The error was: ValueError: too short"),
        ("", "", ""),
        ("a" * 999, "aaa", "aaa ..."),
    ],
)
def test_one_line_has_the_cause_and_not_where_it_was(message, begins, ends):
    said = in_short(message)
    assert said.startswith(begins)
    assert said.endswith(ends)
    assert "\n" not in said
    assert len(said) <= SHOWN + len(" ...")
