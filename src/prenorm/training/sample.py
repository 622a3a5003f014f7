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
    """What samples go on from: the run's sample_prompt; else a line of Python or the first line of a held-out text, as
    much of it as the model has room for."""
    if config.sample_prompt:
        return config.sample_prompt
    prompt = "class Test"
    if config.data:
        start = data.heldout.tokens[1 : min(9, data.heldout.starts[1])].tolist()
        prompt = "".join(data.tokenizer.decode(start).strip("\ufffd").strip().splitlines()[:1])
    prompt = prompt.rstrip()  # tokens begin with their space
    while prompt and len(data.tokenizer.encode(prompt).ids) > config.model.max_seq_len:
        prompt = prompt[:-1].rstrip()
    return prompt


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
