"""Names that nothing defines are slips; those that other code, another value or another release may have are none."""

import pytest

from prenorm.checks.source.misspelt import misspelt

TENSOR, BLOCK = "'Tensor' object has no attribute 'devise'", "'Block' object has no attribute 'table'"


@pytest.mark.parametrize(
    ("kind", "message", "source", "is_slip"),
    [
        ("AttributeError", TENSOR, "y = x.devise", True),
        ("AttributeError", TENSOR, "y = x.device", False),  # not of this source
        ("AttributeError", BLOCK, "y = self.table[0]\nz == self.table", True),
        ("AttributeError", BLOCK, "y = self.table[0]\nmodel.block.table = z", False),
        ("AttributeError", BLOCK, "y = self.table[0]\nself.table, self.other = z", False),
        ("AttributeError", TENSOR, "y = torch.arange(7, device=x.devise, dtype=torch.long)", True),
        ("AttributeError", BLOCK, "y = self.table[0]\nblock.register_buffer('table', z)", False),
        ("AttributeError", BLOCK, "class Block:\n    table: Tensor = None\n    y = self.table", False),
        ("AttributeError", "'NoneType' object has no attribute 'shape'", "mask.shape", False),
        ("AttributeError", "'ModelConfig' object has no attribute 'dim'", "config.dim", False),
        ("AttributeError", "module 'torch' has no attribute 'arrange'", "torch.arrange(5)", True),
        ("AttributeError", "module 'torch' has no attribute 'rfft'", "torch.rfft(x)", False),
        ("AttributeError", "module 'helpers' has no attribute 'arrange'", "helpers.arrange(5)", False),
        ("NameError", "name 'seq' is not defined", "class A:\n    def forward(self, x):\n        return seq", True),
        ("NameError", "name 'seq' is not defined", "seq = 5\nclass A:\n    def f(self):\n        return seq", False),
        ("NameError", "name 'seq' is not defined", "if main:\n    seq = 5\ndef f():\n    return seq", False),
        ("NameError", "name 'seq' is not defined", "from names import *\ndef f():\n    return seq", False),
        ("NameError", "name 'seq' is not defined", "def g():\n        global seq\ndef f():\n    return seq", False),
        ("UnboundLocalError", "cannot access local variable 'q'", "q = 1", False),
        ("RuntimeError", "name 'seq' is not defined", "    return seq", False),
    ],
)
def test_a_slip_is_a_name_that_nothing_defines(kind, message, source, is_slip):
    assert misspelt({"type": kind, "message": message, "frames": []}, source) == is_slip
