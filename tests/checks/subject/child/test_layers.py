"""Models and trunks of several layers, told from blocks that have parts in containers."""

import pytest
from torch import nn

from prenorm.checks.subject.child.layers import layers_of

from ...small import Right


def right() -> Right:
    return Right(32, 4, 52)


class Heads(nn.Module):
    """A head has three matrices, an expert two; both are alike."""

    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(32, 8) for name in ("q", "k", "v")}) for _ in range(4)
        )
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(32, 52), nn.Linear(52, 32)) for _ in range(4))


class HeadsWithFiveMatrices(nn.Module):
    """As many as a layer's, in a list: beside them are the matrices of a block."""

    def __init__(self):
        super().__init__()
        names = ("key", "value", "query1", "query2", "out")
        self.heads = nn.ModuleList(nn.ModuleDict({name: nn.Linear(32, 8) for name in names}) for _ in range(4))
        self.o, self.feed_forward = nn.Linear(32, 32), nn.ModuleList(nn.Linear(32, 32) for _ in range(3))


def model(layers: int) -> nn.Module:
    made = nn.Module()
    made.tokens, made.layers = nn.Embedding(100, 32), nn.ModuleList(right() for _ in range(layers))
    return made


@pytest.mark.parametrize(
    ("module", "layers"),
    [
        (right(), []),
        (Heads(), []),
        (HeadsWithFiveMatrices(), []),
        (nn.Sequential(right()), []),  # a trunk of one layer is judged as that layer
        (nn.Sequential(right(), right()), ["Right"]),
        (nn.ModuleDict({"a": right(), "b": right()}), ["Right"]),
        (model(1), ["Right"]),
        (model(3), ["Right"]),
        (nn.Sequential(nn.Linear(32, 32), right(), nn.Linear(32, 32)), []),
    ],
)
def test_the_classes_of_stacked_layers(module: nn.Module, layers: list[str]):
    assert layers_of(module) == layers
