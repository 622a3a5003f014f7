import pytest

import prenorm
from prenorm import errors

KINDS = {
    "ConfigError": (ValueError,),
    "ShapeError": (ValueError,),
    "RangeError": (ValueError, IndexError),
    "CheckpointError": (RuntimeError,),
    "DataError": (ValueError,),
    "KernelError": (RuntimeError,),
    "ProcessError": (RuntimeError,),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_error_is_prenorms_and_a_kind_that_python_knows(name):
    error = getattr(errors, name)
    assert getattr(prenorm, name) is error
    for kind in (errors.PrenormError, *KINDS[name]):
        assert issubclass(error, kind)


def test_there_are_no_other_errors():
    found = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert found == {"PrenormError", *KINDS}
