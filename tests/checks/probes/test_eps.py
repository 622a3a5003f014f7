"""The eps that is fitted to each norm."""

from prenorm.checks.judge import judge
from prenorm.checks.source.code import Code
from prenorm.checks.subject.local import LocalSubject

from ..small import Right


class WithoutResidual(Right):
    """Its second norm reads nothing but values."""

    def forward(self, x):
        x = self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


def test_the_eps_of_a_norm_that_reads_values_alone_is_found():
    verdict = judge(
        LocalSubject(WithoutResidual), Code(root="", module=__name__, file="", name="WithoutResidual"), seed=0
    )
    assert verdict.ids == ["missing_residual_attention"]
    assert verdict.conventions["eps"] == 1e-5
