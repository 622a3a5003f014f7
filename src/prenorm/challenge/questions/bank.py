"""All questions. An attempt draws one of each topic."""

from random import Random
from typing import Any

from ...errors import ConfigError
from .attention import RotationAngle, SameDistance, ScoreSpread, WhoNotices
from .cost import CacheBytes, ForwardFlops, LongerSequence
from .norms import NormGradientScale, PostNormPath, RMSNormByHand, WhereTheNormStands
from .problem import Problem
from .residuals import DepthWithoutResiduals, GradientThroughResiduals, SilentSublayers, StreamGrowth
from .shapes import AnotherWidth, EqualWidth, HeadsAreFree, NumbersOut, PriceOfWidening, StackedParameters

PROBLEMS: tuple[type[Problem], ...] = (
    GradientThroughResiduals,
    DepthWithoutResiduals,
    StreamGrowth,
    SilentSublayers,
    PostNormPath,
    WhereTheNormStands,
    RMSNormByHand,
    NormGradientScale,
    AnotherWidth,
    PriceOfWidening,
    NumbersOut,
    StackedParameters,
    HeadsAreFree,
    EqualWidth,
    ForwardFlops,
    LongerSequence,
    CacheBytes,
    SameDistance,
    RotationAngle,
    ScoreSpread,
    WhoNotices,
)
TOPICS = tuple(dict.fromkeys(kind.topic for kind in PROBLEMS))


def draw_all(rng: Random) -> list[Problem]:
    """One problem of each topic, with fresh numbers."""
    return [draw(rng, topic) for topic in TOPICS]


def draw(rng: Random, topic: str) -> Problem:
    """One problem of a topic."""
    return rng.choice([kind for kind in PROBLEMS if kind.topic == topic]).draw(rng)


def restored(kind: str, numbers: dict[str, Any]) -> Problem:
    """The problem with these numbers. Raises ConfigError if no problem has them."""
    known = {one.__name__: one for one in PROBLEMS}
    if kind not in known:
        raise ConfigError(f"there is no question {kind!r}; kinds are {', '.join(known)}.")
    try:
        return known[kind](**numbers)
    except TypeError as error:
        raise ConfigError(f"the question {kind} cannot have the numbers {numbers}: {error}.") from error
