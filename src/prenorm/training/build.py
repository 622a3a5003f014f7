"""The model of a run with its first weights, a folder's or new ones: whole, or for processes that have a part each."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..config import ModelConfig
from ..models.init import first_weights, initialise
from ..models.lm import TransformerLM
from .config import TrainConfig
from .start import starting_model
from .tokenizer import vocabulary_size
from .tokens import TextData


def build_model(config: TrainConfig, data: TextData, *, resumed: bool = False) -> TransformerLM:
    """The model of a run with its first weights: those of `start_from`, or new ones that follow from the seed.

    A new model's vocabulary is the tokenizer's. resumed: the weights may be any.
    Afterwards torch's generator is where the seed puts it, whatever was drawn, so that it is the same in a resumed run.
    """
    _seed(config)
    if config.start_from and not resumed:
        return starting_model(config, data.tokenizer, data.end_ids).train()
    model = _new_model(config, data).to_empty(device="cpu")
    if not resumed:
        initialise(model, model.config.num_layers)
        _seed(config)
    return model


def build_without_data(
    config: TrainConfig, data: TextData, *, resumed: bool = False
) -> tuple[TransformerLM, Iterable[tuple[str, Tensor]]]:
    """The same model on the meta device, and its weights by name: whole, one at a time, on the CPU.

    resumed: none. The generator is as after `build_model` once all weights were taken.
    """
    _seed(config)
    model = _new_model(config, data)
    if resumed:
        return model, ()
    if not config.start_from:
        return model, _new_weights(config, model.config)
    stored = starting_model(config, data.tokenizer, data.end_ids, dtype=None)
    model.eos_token_ids, model.came_from = stored.eos_token_ids, stored.came_from
    return model, stored.named_parameters()


def _new_model(config: TrainConfig, data: TextData) -> TransformerLM:
    """On the meta device."""
    size = config.model.vocab_size if config.start_from else vocabulary_size(data.tokenizer)
    with torch.device("meta"):
        model = TransformerLM(replace(config.model, vocab_size=size))
    model.eos_token_ids = data.end_ids
    return model.train()


def _new_weights(config: TrainConfig, sizes: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    with torch.device("meta"):
        model = TransformerLM(sizes)
    _seed(config)
    yield from first_weights(model, sizes.num_layers)
    _seed(config)


def _seed(config: TrainConfig) -> None:
    torch.manual_seed(int(np.random.SeedSequence([config.seed, 0]).generate_state(1, np.uint64)[0]))
