"""The learning rate over a run: up, level, and down to zero in a straight line."""

from .config import TrainConfig


def learning_rate_scale(config: TrainConfig, step: int) -> float:
    """What all learning rates are multiplied by at step 1, 2, ... config.steps, between 0 and 1.

    min(1, step / warmup_steps, (steps + 1 - step) / (decay_share steps + 1)): neither the first step nor the last is
    lost, and 0 would be reached one step after the end.
    Source: the trapezoidal schedule, Haegele et al. 2024, arXiv:2405.18392.
    """
    rise = step / max(1, config.warmup_steps)
    fall = (config.steps + 1 - step) / (config.decay_share * config.steps + 1)
    return max(0.0, min(1.0, rise, fall))
