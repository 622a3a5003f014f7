import pytest
import torch

import prenorm.functional as F
from prenorm import ConfigError
from prenorm.layers.dropout import Dropout

from ..oracle.inputs import normal


def test_in_training_it_is_the_function_and_in_evaluation_it_changes_nothing():
    layer, x = Dropout(0.3), normal(4, 9)
    torch.manual_seed(1)
    y = layer(x)
    torch.manual_seed(1)
    assert torch.equal(y, F.dropout(x, 0.3))
    assert (y == 0).any()
    assert layer.eval()(x) is x


def test_it_has_nothing_to_save():
    assert Dropout(0.3).state_dict() == {}
    assert repr(Dropout(0.3)) == "Dropout(p=0.3)"


@pytest.mark.parametrize(("p", "message"), [(1.0, "below 1, not 1.0"), (-0.1, "at least 0")])
def test_what_is_no_probability_below_one_is_refused(p, message):
    with pytest.raises(ConfigError, match=f"dropout must be .*{message}"):
        Dropout(p)
