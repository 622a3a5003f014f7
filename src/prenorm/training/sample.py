"""What a model writes: while it learns, and at the end of a run."""

from typing import Any

from ..errors import ConfigError
from ..generation.text import TextGenerator
from ..models.lm import TransformerLM
from .config import TrainConfig
from .tokens import TextData

SAMPLE_TOKENS = 200
SAMPLE_TEMPERATURE = 0.8


def prompt_of(config: TrainConfig, data: TextData) -> str:
    """What samples go on from: the run's sample_prompt, a Python function, or the beginning of a held-out text."""
    if config.sample_prompt:
        return config.sample_prompt
    if not config.data:
        return "class Test"  # no space at the end: tokens begin with theirs
    start = data.heldout.tokens[1 : min(9, data.heldout.starts[1])].tolist()
    return data.tokenizer.decode(start).strip("\ufffd").strip().partition("\n")[0]


def check_prompt(config: TrainConfig, data: TextData) -> None:
    """Raise ConfigError unless the model has room for the prompt that the run names, before a step is taken."""
    tokens = len(data.tokenizer.encode(config.sample_prompt).ids)
    if tokens > config.model.max_seq_len:
        raise ConfigError(
            f"sample_prompt must have at most the model's max_seq_len = {config.model.max_seq_len} tokens, but has "
            f"{tokens}; cut it."
        )


def sample(model: TransformerLM, config: TrainConfig, data: TextData) -> dict[str, Any]:
    """The prompt, and the text that the model goes on with: the same for the same weights. It draws from no generator
    but its own."""
    prompt = prompt_of(config, data)
    room = model.config.max_seq_len - len(data.tokenizer.encode(prompt).ids) + 1
    (completion,) = TextGenerator(model, data.tokenizer).generate(
        [prompt], max_new_tokens=min(SAMPLE_TOKENS, room), temperature=SAMPLE_TEMPERATURE, seed=config.seed
    )
    return {"prompt": prompt, "text": completion.text}
