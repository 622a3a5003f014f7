import ast

import pytest

from prenorm.challenge import harden
from prenorm.challenge.planters.code import Code
from prenorm.challenge.planters.table import PLANTERS, candidates
from prenorm.checks.faults import FAULTS

from ...checks.corpus.styles import STYLES
from ..conftest import SOLUTIONS
from ..fake import judge_numbers

# Where a solution has nothing of the kind: a fused call has no softmax, one line has no name for the middle, ...
NO_PLACE = {
    "plain": {"ffn_residual_from_input", "parallel_sublayers", "unexpected_bias"},
    "terse": {"rope_half_split", "softmax_wrong_dim"},
    "inplace": {"positions_off_by_one", "wrong_head_split"},
}
SUMS = (
    "missing_residual_attention missing_residual_ffn doubled_residual residual_detached residual_from_normed "
    "ffn_residual_from_input post_norm no_norm shared_norm gradient_missing"
)
CODE = {name: Code((SOLUTIONS / f"{name}.py").read_text()) for name in NO_PLACE}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("solution", NO_PLACE)
@pytest.mark.parametrize("fault", PLANTERS)
def test_a_fault_is_planted_and_found_or_has_no_place(fault, solution):
    planted = harden.plant_one(CODE[solution], fault, judge_numbers)
    assert (planted is None) == (fault in NO_PLACE[solution])


def test_every_fault_has_a_name_and_a_place_in_two_solutions_at_least():
    assert set(PLANTERS) <= set(FAULTS)
    assert len(PLANTERS) >= 20
    for fault in PLANTERS:
        assert sum(fault in places for places in NO_PLACE.values()) <= 1


@pytest.mark.parametrize("solution", NO_PLACE)
def test_nothing_but_an_expression_or_two_is_edited(solution):
    before = CODE[solution].text.splitlines()
    for fault in PLANTERS:
        for text in candidates(CODE[solution], fault):
            after = text.splitlines()
            assert len(after) == len(before)  # so comments, names and spacing are the learner's
            changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
            assert 1 <= len(changed) <= 6
            for a, b in changed:
                assert a[: len(a) - len(a.lstrip())] == b[: len(b) - len(b.lstrip())]


def test_places_are_right_behind_characters_of_several_bytes():
    code = Code("import torch\n# größe\ndef f(größe):\n    return 'é', torch.sqrt(größe + 1)  # müßig\n")
    (call,) = code.calls(code.tree, "sqrt")
    assert code.of(call) == "torch.sqrt(größe + 1)"
    assert code.of(call.args[0]) == "größe + 1"
    assert code.edited([code.replace(call.args[0], "größe")]).endswith("torch.sqrt(größe)  # müßig\n")


def test_an_edit_that_changes_nothing_or_leaves_no_python_is_none():
    code = Code("x = (a + b)\n")
    (total,) = code.binary(code.tree, ast.Add)
    assert code.edited([code.replace(total, "a+b")]) is None
    assert code.edited([code.replace(total, "a +")]) is None
    assert code.edited([code.replace(total, "a"), code.replace(total.left, "b")]) is None


def test_a_sum_in_place_is_a_residual_too():
    text = (SOLUTIONS / "plain.py").read_text()
    old = "        x = x + self.attn(self.norm1(x), token_positions)\n        return x + self.ffn(self.norm2(x))\n"
    new = "        y = x.clone()\n        y += self.attn(self.norm1(x), token_positions)\n"
    assert old in text
    code = Code(text.replace(old, f"{new}        return y + self.ffn(self.norm2(y))\n"))
    for fault in SUMS.split():
        assert harden.plant_one(code, fault, judge_numbers) is not None, fault


@pytest.mark.sampled(4)
@pytest.mark.parametrize("style", [module.STYLE for module in STYLES], ids=lambda style: style.name)
def test_there_is_a_place_for_many_faults_however_the_block_is_written(style):
    code = Code(style.source, style.attribute)
    places = [fault for fault in PLANTERS if any(True for _ in candidates(code, fault))]
    assert len(places) >= 15
