"""What strangers' blocks do: faults are named and count; choices are named or reported, and do not.

Those that take a long search are left out; PRENORM_ALL_CHECKS=1 has them too.
"""

import functools
import json
import math
import multiprocessing
import os
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from prenorm.checks.judge import judge
from prenorm.checks.probes import gradients
from prenorm.checks.report.gradescope import gradescope
from prenorm.checks.search import attempt
from prenorm.checks.source.code import locate
from prenorm.checks.subject import learner
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import Verdict

from . import small

COUNTING = {
    "UpcastMissing": {"norm_without_upcast"},
    "NoMaximum": {"softmax_overflows"},
    "DividesInPlace": {"backward_error"},
    "ChangedUnderTheNorm": {"backward_error"},
    "GraphOfTheConstructor": {"backward_error"},
    "WidthOfItsOwn": {"d_ff_ignored"},
    "WidthOfEightInputs": {"d_ff_ignored"},
    "WidthThatIsFixed": {"d_ff_ignored"},
    "NormsFromNoise": {"norm_weight_init"},
    "NormsFromZero": {"norm_weight_init"},
    "NeverFilled": {"weights_uninitialised"},
    "VarianceForDeviation": {"weight_init_scale"},
    "DeviationOfAProduct": {"weight_init_scale"},
    "DeviationOfOne": {"weight_init_scale"},
    "Frozen": {"gradient_missing"},
    "AddsInPlace": {"modifies_input", "backward_error"},
    "BringsBack": {"wrong_device_buffer"},
    "Squeezed": {"batch_of_one"},
    "AxisByItsSize": {"wrong_at_some_lengths"},
    "NormsInTheirInputsDtype": {"norm_without_upcast"},
    "FrequenciesThatGrow": {"rope_wrong_frequency"},
    "TablesInFloat16": {"rope_bf16_tables"},
    "ValuesReshaped": {"wrong_head_split"},
    "RaisesInBfloat16AndIsOdd": {"wrong_dtype", "unexplained"},
}
OF_SOME_LENGTHS = {
    "UnscaledUnderAMaskOfOneLength": {"sequence_length_fixed", "missing_attention_scale"},
    "GateAfterProductAndSqueezed": {"sequence_length_fixed", "gate_after_product"},
    "OneNormAndMultiplesOfEight": {"sequence_length_fixed", "no_norm"},
    "UpcastMissingAndTableOfTheLastCall": {"retains_state", "norm_without_upcast"},
}
ROUNDED_FIRST = "the number that scales a row is rounded first"
CHOICES: dict[str, Any] = {
    "Right": {},
    "BatchSeqOnly": {"leading_dims": "(batch, seq, d_model) only"},
    "AnyTheta": {"rope_theta": pytest.approx(123456.0, rel=1e-4)},
    "GatedByANumber": {"branch_scale": pytest.approx(math.tanh(0.75), rel=1e-4)},
    "Windowed": {"causal": True},
    "StretchedFrequencies": {"rope_frequencies": "1, 0.08, 0.006, 0.0001"},
    "GateAndUpInOne": {"d_ff": "256 for d_ff=52"},
    "WidthInMultiples": {"d_ff": "256 for d_ff=52"},
    "OnePairTurned": {"rope_pairing": "half-split", "rotary_fraction": 0.25},
    "NormsAround": {"sandwich_norms": True},
    "NormsOverAllHeads": {"qk_norm": True, "grouped_heads": "repeated"},
    "QueriesScaledByDimension": {"left_as_built": ["scale"]},
    "CappedScores": {"score_softcap": 30.0},
    "SmallBranches": {"branch_scale": 0.22},
    "TrueIsMasked": {"mask": "True = masked"},
    "ZeroAtFirst": {},
    "SmallAsInGpt2": {},
    "SmallForDepth": {},
    "RoundedBeforeItsWeight": {"norm_cast": "before the weight"},
    "ScaleIsRounded": {"norm_cast": ROUNDED_FIRST},
    "RootIsRounded": {"norm_cast": ROUNDED_FIRST},
}
NAMED = {
    "Gpt2": {"layer_norm", "wrong_activation", "missing_rope"},
    "HalfOfItsOwn": {"missing_rope"},
    "SideBySide": {"parallel_sublayers"},
    "NormsBehind": {"post_norm"},
    "WithoutNormWeights": {"norm_weight_missing"},
    "PositionsAdded": {"missing_rope"},
}
TARGETS = {
    ("Right", "cs336"): set(),
    ("Right", "llama-original"): set(),
    ("Right", "llama"): {"rope_interleaved"},
    ("Right", "paper"): {"causal_mask", "token_positions_ignored"},
    ("BatchSeqOnly", "cs336"): set(),
    ("RoundedBeforeItsWeight", "cs336"): set(),
    ("RoundedBeforeItsWeight", "paper"): {"causal_mask", "token_positions_ignored"},
    ("Gpt2", "cs336"): {"layer_norm", "wrong_activation", "missing_rope", "unexpected_bias"},
    ("SideBySide", "llama-original"): {"parallel_sublayers"},
}


EVERYTHING = bool(os.environ.get("PRENORM_ALL_CHECKS"))
SLOW = {"RaisesInBfloat16AndIsOdd", "StretchedFrequencies", "CappedScores", "NormsAround"}
if not EVERYTHING:
    COUNTING, CHOICES = ({key: one[key] for key in one if key not in SLOW} for one in (COUNTING, CHOICES))
    TARGETS = {key: TARGETS[key] for key in [*TARGETS][::2]}


def judged(name: str, target: str | None = None, seed: int = 0) -> Verdict:
    torch.set_num_threads(1)
    code = locate(f"{small.__file__}:{name}")
    return judge(LocalSubject(getattr(small, name)), code, target=target, seed=seed)


@pytest.fixture(scope="module")
def verdict_of() -> Iterator[Callable[..., Verdict]]:
    """Judges, each block once, in a process of its own, where no type checker slows the search."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield functools.cache(lambda *of: pool.submit(judged, *of).result())


def counting(verdict: Verdict) -> set[str]:
    return {finding.id for finding in verdict.faults}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize(
    ("name", "cast"),
    [("NormsInTheirInputsDtype", None), ("RootIsRounded", ROUNDED_FIRST), ("ScaleIsRounded", ROUNDED_FIRST)],
)
def test_how_a_norm_rounds_is_told_apart_with_any_numbers(name, cast, seed, verdict_of):
    verdict = verdict_of(name, None, seed)
    assert verdict.conventions.get("norm_cast") == cast
    assert counting(verdict) == (set() if cast else {"norm_without_upcast"})


@pytest.mark.parametrize(
    ("name", "found"), [("RaisesInBfloat16", []), ("RaisesInBfloat16AndRoundsNorms", ["norm_without_upcast"])]
)
def test_a_bfloat16_block_that_does_not_run_hides_no_norm_that_rounds(name, found, verdict_of):
    verdict = verdict_of(name)
    assert verdict.ids == ["wrong_dtype", *found]
    assert [finding.id for finding in verdict.faults] == found


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", COUNTING)
def test_a_fault_is_named_and_counts(name, verdict_of):
    verdict = verdict_of(name)
    assert counting(verdict) == COUNTING[name]
    assert verdict.exit_code == 1


@pytest.mark.parametrize("name", OF_SOME_LENGTHS)
def test_a_length_that_fails_hides_no_other_fault(name, verdict_of):
    assert counting(verdict_of(name)) == OF_SOME_LENGTHS[name]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("name", "id", "said"),
    [
        ("SiluAfterDown", "wrong_activation", "its output, after the last projection, goes through silu"),
        ("ReluAfterAttention", "unexplained", "attention, after its last projection, goes through relu"),
        ("NormAfterDown", "unexplained", "after its last projection, goes through an RMSNorm without a weight"),
    ],
)
def test_what_follows_the_last_projection_is_said(name, id, said, verdict_of):
    (finding,) = verdict_of(name).faults
    assert finding.id == id
    assert said in finding.evidence


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("TablesForHalves", "2i and 2i+1 are paired, and cos and sin are laid out for pairs of i and i + head_dim/2"),
        (
            "TablesForNeighbours",
            "i and i + head_dim/2 are paired, and cos and sin are laid out for pairs of 2i and 2i+1",
        ),
    ],
)
def test_tables_for_the_other_pairing_make_no_rotation(name, said, verdict_of):
    (finding,) = verdict_of(name).faults
    assert finding.id == "rope_not_a_rotation"
    assert said in finding.evidence


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_is_no_fault_and_is_reported(name, verdict_of):
    verdict = verdict_of(name)
    assert verdict.ids == []
    assert verdict.exit_code == 0
    assert {one: verdict.conventions.get(one) for one in CHOICES[name]} == CHOICES[name]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", NAMED)
def test_another_design_is_named_and_does_not_count(name, verdict_of):
    verdict = verdict_of(name)
    assert set(verdict.ids) == NAMED[name]
    assert verdict.exit_code == 0
    assert [one["counts"] for one in verdict.to_json()["findings"]] == [False] * len(NAMED[name])
    assert gradescope(verdict)["score"] == 100.0


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "target"), TARGETS)
def test_a_target_fixes_what_is_free_without_one(name, target, verdict_of):
    assert counting(verdict_of(name, target)) == TARGETS[name, target]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("DividesInPlace", "e /= e.sum(-1, keepdim=True)"),
        ("ChangedUnderTheNorm", "y += self.feed_forward(self.norm2(y))"),
    ],
)
def test_a_change_in_place_is_pointed_at(name, code, verdict_of):
    (finding,) = verdict_of(name).findings
    assert finding.place is not None
    assert finding.place.code == code
    assert "changed in place" in finding.evidence
    assert "not e /= total" in finding.mend


def test_a_stack_of_layers_is_no_block_and_no_fault(verdict_of):
    verdict = verdict_of("StackOfLayers")
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["unreadable"], (), 2)
    assert "StackOfLayers is a stack of layers (depth=1)" in verdict.findings[0].evidence


@pytest.mark.long
def test_a_block_that_is_told_the_number_of_layers_is_a_block(verdict_of):
    assert counting(verdict_of("OddAndScaledForDepth")) == {"unexplained"}


def test_a_number_of_heads_that_nobody_can_set_is_no_fault(verdict_of):
    assert counting(verdict_of("EightHeads")) == set()


def test_experts_are_no_block_and_are_not_searched_for_long(verdict_of):
    verdict = verdict_of("Experts")
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["unreadable"], (), 2)
    assert "feed-forward has more than a block's" in verdict.findings[0].evidence


def test_what_nobody_could_judge_passes_nowhere_and_is_no_fault(verdict_of):
    verdict = verdict_of("OneFlatVector")
    assert verdict.ids == ["unreadable"]
    assert not verdict.faults
    assert not verdict.passed
    assert verdict.exit_code == 2
    results = gradescope(verdict)
    assert results["score"] == 0.0
    assert results["output"] == "Its numbers could not be judged; a person has to look at it."


def test_what_the_line_of_the_call_makes_is_not_made_by_the_block():
    code = locate(f"{small.__file__}:WithoutNormWeights")
    verdict = judge(LocalSubject(), code, call="(nn.Linear(2, 2), torch.ones(32), block(x))[-1]", seed=0)
    assert verdict.ids == ["norm_weight_missing"]


@pytest.mark.parametrize("busy", [False, True])
def test_a_search_that_takes_too_long_is_no_fault(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """busy: other processes use up the time, and not the search."""
    clock = types.SimpleNamespace(monotonic=lambda: math.inf, thread_time=lambda: 0.0)
    if busy:
        monkeypatch.setattr(attempt, "time", clock)
    else:
        monkeypatch.setattr(learner, "SEARCHED", 0.0)
    code = locate(f"{small.__file__}:RaisesInBfloat16AndIsOdd")
    verdict = judge(LocalSubject(small.RaisesInBfloat16AndIsOdd), code, seed=0, deadline=time.monotonic() + 60)
    found = {one.id: one.evidence for one in verdict.findings}
    assert {"wrong_dtype", "unexplained"} <= found.keys()
    assert found["unexplained"] == "at the time limit of the search, of which a larger --timeout gives it more"
    assert "timeout" not in found
    assert "unexplained" not in [one.id for one in verdict.faults]


@pytest.mark.parametrize("times", [1, 2])
def test_gradients_are_wrong_if_they_are_for_two_inputs(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alike, compared = gradients._alike, set[int]()

    def misjudged(given: Tensor | None, expected: Tensor | None, tolerance: float) -> bool:
        if len(compared) < times and expected is not None and expected.dim() == 3:  # of x, once for each input
            compared.add(len(compared))
            return False
        return alike(given, expected, tolerance)

    monkeypatch.setattr(gradients, "_alike", misjudged)
    verdict = judge(LocalSubject(small.Right), locate(f"{small.__file__}:Right"), seed=0)
    assert verdict.ids == (["gradient_wrong"] if times == 2 else [])


def test_a_mistake_of_the_checkers_own_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("prenorm.checks.judge.numbers.numbers", broken)
    verdict = judged("Right")
    assert verdict.ids == ["internal_error"]
    assert "ZeroDivisionError: ours (at test_strangers.py:" in verdict.findings[0].evidence
    assert verdict.exit_code == 2
    assert json.loads(json.dumps(verdict.to_json()))["passed"] is False
