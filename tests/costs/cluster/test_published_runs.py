import statistics

import pytest

from prenorm.costs.cluster.published_runs import mpt, published_runs
from prenorm.costs.cluster.spread_sheet import REACHED, runs_sheet
from prenorm.costs.cluster.step_time import model_flops_utilisation
from prenorm.costs.parameters import total

RUNS = published_runs()

# NumParams of llm-foundry's table, by width, layers and context.
PUBLISHED_PARAMETERS = {
    (4096, 32, 2048): 6658859008,
    (5120, 40, 2048): 12853954560,
    (7168, 48, 2048): 29975214080,
    (8192, 80, 2048): 64862437376,
}
# MFU in percent as their sources have it, where they have it: by name and hardware.
PUBLISHED_MFU = {
    **{("mpt-7b, 8 GPUs", "H100"): 46.44, ("mpt-13b, 64 GPUs", "H100"): 39.86, ("mpt-30b, 32 GPUs", "H100"): 43.92},
    **{("mpt-70b, 64 GPUs", "H100"): 42.57, ("mpt-7b, 8 GPUs", "A100 80 GB"): 64.23},
    **{("mpt-13b, 8 GPUs", "A100 80 GB"): 59.57, ("mpt-30b, 8 GPUs", "A100 80 GB"): 55.3},
    **{("mpt-70b, 64 GPUs", "A100 80 GB"): 53.33, ("22B, 8 GPUs", "A100 80 GB"): 41.5},
    **{("175B, 64 GPUs", "A100 80 GB"): 51.4, ("530B, 280 GPUs", "A100 80 GB"): 56.0},
    **{("1T, 512 GPUs", "A100 80 GB"): 56.3, ("530B, 2240 GPUs", "A100 80 GB"): 54.2},
    **{("llama-3.1-405b, 8,192 GPUs", "H100"): 43.0, ("llama-3.1-405b, 16,384 GPUs", "H100"): 41.0},
}


@pytest.mark.parametrize("sizes", PUBLISHED_PARAMETERS)
def test_the_models_of_llm_foundry_have_the_published_numbers_of_parameters(sizes):
    assert total(mpt(*sizes)) == PUBLISHED_PARAMETERS[sizes]


def test_published_steps_come_to_the_mfu_that_their_sources_have():
    met = {(run.name, run.cluster.name): run for run in RUNS}
    for key, percent in PUBLISHED_MFU.items():
        run = met[key]
        found = 100 * model_flops_utilisation(run.plan, run.cluster, run.seconds)["mfu_6n_attention"]
        assert found == pytest.approx(percent, rel=0.025)


def test_the_share_that_is_reached_is_the_median_over_the_published_runs():
    shares = [one["seconds_at_full_rates"] / one["published_seconds"] for one in runs_sheet(RUNS)]
    assert round(statistics.median(shares), 2) == REACHED


def test_no_run_is_faster_than_the_rates_of_its_hardware_allow():
    assert all(one["seconds_at_full_rates"] < one["published_seconds"] for one in runs_sheet(RUNS))


def test_half_of_the_predictions_are_within_15_percent_and_all_within_40():
    errors = sorted(abs(one["error"]) for one in runs_sheet(RUNS))
    assert errors[len(errors) // 2] < 0.15
    assert errors[-1] < 0.4


def test_every_run_has_its_source_and_its_figure():
    for run in RUNS:
        assert run.source
        assert run.published[0].isdigit()
