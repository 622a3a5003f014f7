"""The learning rate over a run: up in the warm-up, then down as one of three schedules has it."""

import math

from .config import TrainConfig


def learning_rate_scale(config: TrainConfig, step: int) -> float:
    """What all learning rates are multiplied by at step 1, 2, ... config.steps, between 0 and 1.

    min(1, step / warmup_steps, final_lr_share + (1 - final_lr_share) fall), where fall goes from 1 down, and would be 0
    one step after the end: neither the first step nor the last is lost. With left = steps + 1 - step, fall is

    linear: left / (decay_share steps + 1), the trapezoidal schedule of Haegele et al. 2024, arXiv:2405.18392.
    wsd:    1 - sqrt(1 - that), the decay that they found best for warm-up-stable-decay.
    cosine: (1 + cos(pi (1 - left / (steps + 1 - warmup_steps)))) / 2, Loshchilov and Hutter 2017, arXiv:1608.03983.
    """
    left, rise = config.steps + 1 - step, step / max(1, config.warmup_steps)
    over = config.steps - config.warmup_steps if config.schedule == "cosine" else config.decay_share * config.steps
    fall = min(1.0, left / (max(0, over) + 1))  # in a straight line
    if config.schedule == "cosine":
        fall = (1 - math.cos(math.pi * fall)) / 2
    elif config.schedule == "wsd":
        fall = 1 - math.sqrt(1 - fall)
    return max(0.0, min(1.0, rise, config.final_lr_share + (1 - config.final_lr_share) * fall))
