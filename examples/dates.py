"""An encoder-decoder that reads dates, written in a hundred languages, as ISO 8601.

    de_AT: Dienstag, 3. März 2026    2026-03-03
    ar_EG: ٣ مارس ٢٠٢٦               2026-03-03
    en_GB: 03/04/2026                2026-04-03

Babel writes dates as the Unicode CLDR says a locale does. The locale stands in front, since 3/4/2026 is another day
in en_US; but so few locales put the month first that a short run does not learn to look. Tokens are UTF-8 bytes. The
languages are those that are official somewhere; the other two hundred are asked for at the end only, to see what the
model makes of them. One date in twenty is held out, in every language.

    pip install "prenorm[examples]"
    python examples/dates.py                                 # trains, in four to six minutes on two cores
    python examples/dates.py --try "fr: mardi 3 mars 2026"   # asks the trained model

runs/dates then has accuracy.png (the learning curve), metrics.jsonl and the model.
"""

import io
import math
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from babel import Locale
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn.utils.rnn import pad_sequence
from written_dates import FORMATS, Forms, Pair, all_forms, exam_of, official_languages, pairs

from prenorm import ConfigError, EncoderDecoder, EncoderDecoderConfig, PrenormError
from prenorm.checkpoint.files import write_atomically
from prenorm.training.config import TrainConfig
from prenorm.training.device import choose_device, hold_on_to_memory
from prenorm.training.display import Display
from prenorm.training.metrics import Metrics, Record, read_metrics
from prenorm.training.optimizer import MuonAndAdamW
from prenorm.training.schedule import learning_rate_scale

START, END = 256, 257  # after the 256 bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """Train an encoder-decoder to read dates in many languages, or ask the one that was trained."""

    out: Path = Path("runs/dates")
    """The folder to write the model, its metrics and the learning curve to; --try reads the model there."""

    steps: int = 1100
    """Optimiser steps."""

    batch_size: int = 128
    """Dates in a step."""

    d_model: int = 128
    """Width of the model."""

    exam: int = 5000
    """Held-out dates that are asked for at the end."""

    languages: tuple[str, ...] = ()
    """Codes of the languages to learn, such as de fr ja. Default: those that are official somewhere."""

    seed: int = 0
    """Fixes the first weights and the dates."""

    ask: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="try", metavar="TEXT")] = ()
    """Do not train, but read this date: a locale, a colon, a space and what is written there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Train or ask. Gives the exit code: 0, or 2 for bad usage."""
    flags = tyro.cli(Flags, prog="dates.py", args=argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show every script still gets the others
    hold_on_to_memory()
    try:
        if flags.ask:
            answer(flags)
        else:
            learn(flags, Display())
    except (PrenormError, OSError) as error:
        print(f"dates.py: {error}", file=sys.stderr)
        return 2
    return 0


def answer(flags: Flags) -> None:
    """Print what the trained model makes of what was asked."""
    model = EncoderDecoder.from_pretrained(flags.out)
    for text, reply in zip(flags.ask, read(model, flags.ask), strict=True):
        print(f"{text}    {reply}")


def learn(flags: Flags, display: Display) -> None:
    """Train, save, draw and examine a model."""
    if flags.out.exists() and any(flags.out.iterdir()):
        raise ConfigError(f"out must be a new folder or an empty one, but {flags.out} is not empty.")
    if flags.exam < 5:
        raise ConfigError(f"exam must be at least 5, not {flags.exam}.")
    forms = all_forms()
    chosen = set(flags.languages) or official_languages() & forms.keys()
    if unknown := chosen - forms.keys():
        raise ConfigError(f"languages must be codes such as de or ja, but there is no {', '.join(sorted(unknown))}.")
    seen = {language: forms.pop(language) for language in sorted(chosen)}
    torch.manual_seed(flags.seed)
    model = make_model(flags.d_model)
    train(model, seen, flags, display)
    model.save_pretrained(flags.out)
    draw(read_metrics(flags.out / "metrics.jsonl"), flags.out / "accuracy.png")
    examine(model, exam_of(seen, flags.exam), exam_of(forms, flags.exam // 5), display)


# The dates, as bytes.


def encode(text: str) -> list[int]:
    """The ids of a text: its bytes."""
    return list(text.encode())


def decode(token_ids: Sequence[int]) -> str:
    """The text of ids, without start and end."""
    return bytes(token for token in token_ids if token < START).decode(errors="replace")


# The model.


def make_model(d_model: int) -> EncoderDecoder:
    """A model of bytes. Two blocks that read and one that writes do as well as more of them, in less time."""
    sizes: dict[str, Any] = {"d_model": d_model, "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4}
    model = EncoderDecoder(EncoderDecoderConfig(vocab_size=258, start_token_id=START, dropout=0.0, **sizes))
    model.eos_token_ids = (END,)
    return model


def batches(source: Iterator[Pair], rng: random.Random, size: int) -> Iterator[list[list[Pair]]]:
    """Endless batches of two halves, short texts and long ones, each of about one length: little is padding.

    A whole batch of one length would have few languages in it, and the rarest would be learned last.
    """
    half = math.ceil(size / 2)
    while True:
        pool = sorted(islice(source, 32 * half), key=lambda pair: len(encode(pair.text)))
        halves = [pool[start : start + half] for start in range(0, len(pool), half)]
        yield from (
            [short, long] for short, long in zip(rng.sample(halves[:16], 16), rng.sample(halves[16:], 16), strict=True)
        )


def loss_of(model: EncoderDecoder, part: Sequence[Pair]) -> torch.Tensor:
    """The mean cross-entropy of the right answers, in nats a byte."""
    device = model.head_weight.device
    rows = [torch.tensor(encode(pair.text)) for pair in part]
    source = pad_sequence(rows, batch_first=True, padding_value=-1).to(device)
    target = torch.tensor([[START, *encode(pair.answer), END] for pair in part], device=device)
    segment_ids = source.clamp_max(0)  # 0 on bytes, -1 on padding
    return model.loss(source.clamp_min(0), target[:, :-1], target[:, 1:], source_segment_ids=segment_ids)


def read(model: EncoderDecoder, texts: Sequence[str]) -> list[str]:
    """What the model takes each text for."""
    rows, answers = [encode(text) for text in texts], [""] * len(texts)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    model.eval()
    for start in range(0, len(order), 256):
        chosen = order[start : start + 256]
        replies = model.generate([rows[index] for index in chosen], temperature=0, max_new_tokens=11)
        for index, reply in zip(chosen, replies, strict=True):
            answers[index] = decode(reply)
    model.train()
    return answers


def accuracy(model: EncoderDecoder, exam: Sequence[Pair]) -> float:
    """The share of dates that the model reads right, in every digit."""
    answers = read(model, [pair.text for pair in exam])
    return sum(pair.answer == answer for pair, answer in zip(exam, answers, strict=True)) / len(exam)


# The training.


def train(model: EncoderDecoder, forms: Forms, flags: Flags, display: Display) -> None:
    """Train; metrics.jsonl gets every step's loss and, ten times, the accuracy on held-out days."""
    recipe = TrainConfig.from_fields(RECIPE | {"steps": flags.steps, "batch_size": flags.batch_size})
    device = choose_device(recipe)
    optimizer = MuonAndAdamW(model.to(device.device), recipe)
    rng = random.Random(flags.seed)
    data = batches(pairs(forms, rng, held_out_days=False), rng, flags.batch_size)
    exam = exam_of(forms, min(flags.exam, 500))
    with (
        Metrics(flags.out / "metrics.jsonl", up_to_step=0) as metrics,
        display.steps(done=0, total=flags.steps, line_seconds=30.0) as report,
    ):
        for step, batch in enumerate(islice(data, flags.steps), start=1):
            started, total = time.monotonic(), 0.0
            for half in batch:
                with device.autocast():
                    loss = loss_of(model, half) / len(batch)
                loss.backward()
                total += loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.grad_clip)
            optimizer.step(learning_rate_scale(recipe, step))
            record: Record = {"step": step, "loss": total}
            if step % max(1, flags.steps // 10) == 0:
                record["accuracy"] = accuracy(model, exam)
            metrics.write(record)
            size = sum(len(encode(pair.text)) for half in batch for pair in half)
            report({**record, "tokens_per_second": size / (time.monotonic() - started)})


# Muon needs half the steps that AdamW alone does.
RECIPE = {
    "muon_lr": 0.02,
    "embedding_lr": 0.003,
    "vector_lr": 0.003,
    "adam_betas": (0.9, 0.98),
    "warmup_steps": 30,
    "decay_share": 0.7,
}


def draw(records: Sequence[Record], path: Path) -> None:
    """Write a picture of the learning curve: the loss, and the accuracy on held-out days."""
    losses = [(record["step"], record["loss"]) for record in records]
    accuracies = [(record["step"], 100 * record["accuracy"]) for record in records if "accuracy" in record]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy(*zip(*losses, strict=True), color="tab:blue", linewidth=0.8)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("training loss (nats per byte)", color="tab:blue")
    axes.grid(alpha=0.3)
    right = axes.twinx()
    right.plot(*zip(*accuracies, strict=True), color="tab:red", marker="o", markersize=4)
    right.set_ylim(0, 101)
    right.set_ylabel("held-out dates read right (%)", color="tab:red")
    write_atomically(path, FigureCanvasAgg(figure).print_png)


def examine(model: EncoderDecoder, exam: Sequence[Pair], foreign: Sequence[Pair], display: Display) -> None:
    """Show how much of what was held out is read right, where that is least, and a few answers."""
    answers = read(model, [pair.text for pair in exam])
    groups: dict[str, list[bool]] = defaultdict(list)
    lines: dict[bool, list[str]] = {True: [], False: []}
    for pair, answer in zip(exam, answers, strict=True):
        right = pair.answer == answer
        for group in ("all of them", pair.form.format, pair.language):
            groups[group].append(right)
        lines[right].append(f"{pair.text}    {answer}" + ("" if right else f"    wrong: {pair.answer}"))
    shares = {group: sum(right) / len(right) for group, right in groups.items()}
    languages = sorted({pair.language for pair in exam}, key=lambda language: (shares[language], language))
    names = {language: f"among the worst: {Locale.parse(language).english_name}" for language in languages[:5]}
    groups_shown = ["all of them", *FORMATS, *names]
    rows = [(names.get(group, group), f"{shares[group]:.1%}") for group in groups_shown if group in shares]
    rows.append(("other languages, never seen", f"{accuracy(model, foreign):.1%}"))
    display.table(f"{len(exam):,} held-out dates in {len(languages)} languages: read right", rows)
    for line in lines[True][:8] + lines[False][:8]:
        display.say(line)


if __name__ == "__main__":
    sys.exit(main())
