"""Random folders of every family that opens, with every key of its config class: the same numbers, or refused."""

from collections import Counter

import pytest
from transformers.utils import logging

from .random_folders import FAMILIES, outcome_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shapes_unchecked")]

logging.disable_progress_bar()
logging.set_verbosity_error()

FOLDERS = 25  # of a family; about half are of a kind that transformers itself does not open, or that is refused


@pytest.mark.filterwarnings("ignore")  # what transformers says of odd settings
@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_folder_gives_the_numbers_of_transformers_or_is_refused(family, tmp_path):
    outcomes = {seed: outcome_of(family, seed, tmp_path) for seed in range(FOLDERS)}
    different = {seed: (each.why, each.fields) for seed, each in outcomes.items() if each.what == "different"}
    assert not different
    # Keys that have no meaning for the numbers are not checked as strictly as transformers' config classes do.
    alone = {seed: each.why for seed, each in outcomes.items() if each.what == "ours alone"}
    assert all("ValidationError" in why for why in alone.values()), alone
    counts = Counter(each.what for each in outcomes.values())
    assert counts["same"] >= FOLDERS // 5, counts
