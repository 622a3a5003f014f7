"""`prenorm generate RUN --prompt "def "`: streams text from a trained model."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ..errors import ConfigError, DataError
from .flags import flags_from
from .trained_model import open_model

if TYPE_CHECKING:  # loads torch, which --help does not wait for
    from ..generation.text import TextGenerator

# The flags that are passed on to the model under the same names.
OPTIONS = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop")


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateFlags:
    """Write text with a trained model: the prompt, and what the model makes of it, as it is written.

    Where these flags are silent, the folder's generation_config.json has a say: sampling, lengths, stop strings.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A folder with config.json, weights and tokenizer.json: from prenorm train, or from Hugging Face."""

    prompt: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """The text to continue; "" starts a new text. Default: standard input. Give a text that is also one of these flags
    as --prompt=TEXT."""

    max_new_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """The most tokens to generate after each prompt. Default: 128, or fewer if the model has less room."""

    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Below 1 sharpens the model's probabilities, above 1 flattens them; 0 always takes the most probable token.
    1.0 where generation_config.json says nothing."""

    top_k: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Sample only from the k most probable tokens."""

    top_p: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Sample only from the fewest tokens whose probabilities add up to p."""

    min_p: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Sample only from tokens at least p times as probable as the most probable one."""

    repetition_penalty: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Above 1 makes tokens that are already in the prompt or the text less likely; 1.2 is a common choice."""

    seed: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """The same seed gives the same text; without a seed the text differs each time."""

    stop: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """Stop before this string."""

    ignore_generation_config: tyro.conf.FlagCreatePairsOff[bool] = False
    """Do not take settings from the folder's generation_config.json."""

    quantize: Annotated[Literal["int8", "int4"] | None, tyro.conf.arg(metavar="KIND")] = None
    """First round the model's matrices to int8 or int4: on a CPU, decoding is faster and the model slightly worse."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON document, a list of {prompt, text, token_ids, finish_reason}, and nothing else. See --logprobs."""

    logprobs: tyro.conf.FlagCreatePairsOff[bool] = False
    """With --json, add logprobs: the natural log of the model's probability of each new token."""


def parse(argv: list[str]) -> GenerateFlags:
    """The flags of a command line. Exits with a message if they are invalid."""
    flags: GenerateFlags = flags_from(GenerateFlags, argv, prog="prenorm generate")
    return flags


def run(flags: GenerateFlags) -> int:
    """Print the continuation of each prompt, and return the exit code."""
    if flags.logprobs and not flags.json:
        raise ConfigError("--logprobs needs --json, because plain text cannot include them; add --json.")
    prompts = flags.prompt or (_prompt_from_stdin(),)
    generator = _open(flags.run, flags.quantize)
    options = _options(flags)
    if flags.json:
        documents = [dataclasses.asdict(one) for one in generator.generate(prompts, logprobs=flags.logprobs, **options)]
        for document in documents if not flags.logprobs else ():
            del document["logprobs"]
        print(json.dumps(documents, indent=2))
    elif len(prompts) == 1:
        pieces = generator.stream(prompts[0], **options)  # raises for bad options, before anything is printed
        for piece in chain(prompts, pieces, ["\n"]):
            print(piece, end="", flush=True)
    else:
        for number, one in enumerate(generator.generate(prompts, **options), start=1):
            print(f"--- prompt {number} of {len(prompts)} ---\n{one.prompt}{one.text}")
    return 0


def _options(flags: GenerateFlags) -> dict[str, Any]:
    """What the flags say, and where they are silent, the folder's generation_config.json."""
    from ..checkpoint.generation_config import GENERATION_CONFIG, read_generation_config, settings_from_hugging_face

    given = {name: getattr(flags, name) for name in OPTIONS if getattr(flags, name) not in (None, ())}
    fields = None if flags.ignore_generation_config else read_generation_config(flags.run)
    settings = {} if fields is None else settings_from_hugging_face(fields, str(flags.run / GENERATION_CONFIG))
    if settings.get("temperature") == 0 and given.keys() & {"temperature", "top_k", "top_p", "min_p"}:
        del settings["temperature"]  # whoever asks for a way to draw does not want the most probable token
    return settings | given


def _prompt_from_stdin() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            'a prompt is needed, but there is none; give --prompt "def ", or pipe one into standard input.'
        )
    try:
        text = sys.stdin.read()
    except UnicodeDecodeError as error:
        raise DataError(f"the prompt on standard input must be UTF-8 text, but it is not: {error}.") from error
    if not text:
        raise ConfigError('a prompt is needed, but standard input is empty; --prompt "" starts a new text.')
    return text


def _open(folder: Path, quantize: str | None) -> "TextGenerator":
    model, tokenizer = open_model(folder)
    from ..generation.text import TextGenerator

    return TextGenerator(model if quantize is None else model.quantize(quantize), tokenizer)
