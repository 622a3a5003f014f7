import pytest
import torch

import prenorm.functional as F
from prenorm import ConfigError, SwiGLU

from ..oracle import formulas
from ..oracle.inputs import normal, randomise, weights_of
from ..oracle.tolerance import array, assert_exact


def test_it_is_the_papers_formula():
    x, layer = normal(2, 3, 4), randomise(SwiGLU(4, 7, dtype=torch.float64))
    weights = weights_of(layer)
    assert_exact(
        layer(x), formulas.swiglu(array(x), *(weights[f"{name}_proj.weight"] for name in ("gate", "up", "down")))
    )
    assert torch.equal(layer(x), F.swiglu(x, layer.gate_proj.weight, layer.up_proj.weight, layer.down_proj.weight))


def test_d_ff_is_the_width_that_is_built():
    shapes = {name: tuple(weight.shape) for name, weight in SwiGLU(4, 7).state_dict().items()}
    assert shapes == {"gate_proj.weight": (7, 4), "up_proj.weight": (7, 4), "down_proj.weight": (4, 7)}


def test_a_width_that_is_no_size_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="d_ff must be a whole number of at least 1, not 0"):
        SwiGLU(4, 0)
