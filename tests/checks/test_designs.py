"""Designs of published models are no faults, and a fault in one of them has the name that it has elsewhere."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from prenorm.checks.judge import judge
from prenorm.checks.source.code import locate
from prenorm.checks.subject.local import LocalSubject
from prenorm.checks.verdict import Verdict

from . import designs

GATE = "a sigmoid of the input multiplies attention {} its output projection"
DESIGNS: dict[str, dict[str, object]] = {
    "NormedQueriesAndKeys": {"qk_norm": True},
    "LayerNormOfQueriesAndKeys": {"qk_norm": True},
    "ScaleOfItsOwn": {"qk_norm": True},
    "HandsPositionsOn": {"causal": True},
    "WidthOfBoth": {"d_ff": "26 for d_ff=52: the width of gate and up together"},
    "SwitchesInAConfiguration": {"qk_norm": False},
    "LayerNormUpcast": {"norm_cast": "before the weight"},
    "NormsOfHeadsWithoutEps": {"qk_norm_eps": 0.0},
    "HalfTurned": {"rotary_fraction": 0.5},
    "Around": {"sandwich_norms": True},
    "Lecture": {"causal": True},
    **{name: {"attention_gate": GATE.format("before")} for name in ("Gated", "GatedHeads", "GatedByOneProjection")},
    "GatedAtTheEnd": {"attention_gate": GATE.format("after")},
}
FAULTS = {
    "LayerNormWithoutUpcast": "norm_without_upcast",
    "ScaleOfItsOwnAndQueriesOnly": "rope_on_queries_only",
    "HalfTurnedWithoutScale": "missing_attention_scale",
    "AnyThetaWithoutScale": "missing_attention_scale",
    "LectureWithoutResidual": "missing_residual_ffn",
    "LectureOverHeads": "softmax_wrong_dim",
    "LectureWithOneNorm": "no_norm",
    "AroundWithoutResidual": "missing_residual_attention",
    "AroundGateAfterProduct": "gate_after_product",
    "OverTheSequenceUnderAMask": "norm_over_sequence",
    "NormsOfOneClassOverTheSequence": "norm_over_sequence",
    "NormsOfOneClassWithoutEps": "eps_ignored",
    "NormsOfOneClassWithoutEpsByHand": "eps_ignored",
    "TakesPositionsAndNeverRotates": "missing_rope",
    "GatedWithoutScale": "missing_attention_scale",
    "GatedWithoutResidual": "missing_residual_attention",
    "GatedWithoutUpcast": "norm_without_upcast",
    "GatedAndValuesTurned": "rope_on_values",
}


def judged(name: str) -> Verdict:
    torch.set_num_threads(1)
    return judge(LocalSubject(getattr(designs, name)), locate(f"{designs.__file__}:{name}"), seed=0)


@pytest.fixture(scope="module")
def verdict_of() -> Iterator[Callable[[str], Verdict]]:
    """Judges in a process of its own, where no type checker slows the search."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda name: pool.submit(judged, name).result()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", DESIGNS)
def test_a_published_design_has_no_fault(name, verdict_of):
    verdict = verdict_of(name)
    assert [finding.id for finding in verdict.faults] == []
    assert verdict.exit_code == 0
    assert {one: verdict.conventions.get(one) for one in DESIGNS[name]} == DESIGNS[name]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_published_design_is_named(name, verdict_of):
    verdict = verdict_of(name)
    assert [finding.id for finding in verdict.faults] == [FAULTS[name]]


def test_projections_beyond_those_of_a_block_are_not_read(verdict_of):
    verdict = verdict_of("GatedByATangent")
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["unreadable"], (), 2)
    assert "not recognised: attn_gate.weight" in verdict.findings[0].evidence


def test_an_entry_of_a_configuration_that_nobody_can_guess_is_no_fault(verdict_of):
    verdict = verdict_of("EntryThatNobodyKnows")
    assert (verdict.ids, verdict.faults, verdict.exit_code) == (["arguments_unknown"], (), 2)
    (finding,) = verdict.findings
    assert "the configuration has no 'depth_of_the_well'" in finding.evidence
    assert "EntryThatNobodyKnows(config(NAME=VALUE))" in finding.evidence
