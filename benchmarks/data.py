"""Text to tokens and tokens to batches: `benchmarks/data.py [PATH ...]` (default: copies of Python's standard library).

Encoding: all of `prepare`, which is `prenorm data` with a tokenizer that is given (reading, hashing, splitting,
encoding, writing, checking), beside one call of the tokenizer's `encode_batch_fast` on the same texts in memory, in
turn. The ratio is the share of the tokenizer's own rate, and should be at least 0.90. Loading: batches of a run in its
order, on one core, in tokens a second, which should be far above 50,000.

Refuses to report while other work keeps the machine busy; --anyway reports with the load.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from machine import busy, describe, refuse_while_busy
from rich.console import Console
from rich.table import Table

from prenorm.training.batches import TrainingBatches
from prenorm.training.data.corpus import Corpus
from prenorm.training.data.folder import TokenFolder, read_folder
from prenorm.training.data.formats import LargeText, chunks
from prenorm.training.data.prepare import prepare
from prenorm.training.tokenizer import load_tokenizer, tokenizer_files, train_tokenizer

ROUNDS = 3
COPIES = 3  # of the standard library: a run of a second or two would measure its start, and five take four minutes
STEPS, BATCH_SIZE, CONTEXT = 200, 16, 1024


def prepared(folder: Path, paths: list[str]) -> float:
    """Seconds that all of it takes."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    prepare(
        out,
        paths,
        tokenizer=str(folder / "tokenizer"),
        vocab_size=1,
        sample_mb=1,
        one_in=20,
        weights=(),
        say=lambda _: None,
    )
    return time.perf_counter() - start


def encoded(folder: Path, texts: list[str]) -> float:
    """Seconds that the tokenizer takes for the texts alone."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    start = time.perf_counter()
    tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return time.perf_counter() - start


def loaded(folder: TokenFolder) -> float:
    """Tokens a second in batches, on one core."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    batches = TrainingBatches(folder.train, batch_size=BATCH_SIZE, context=CONTEXT, seed=0)
    start = time.perf_counter()
    for step in range(1, STEPS + 1):
        batches.at(step)
    return STEPS * BATCH_SIZE * CONTEXT / (time.perf_counter() - start)


def library(folder: Path) -> list[str]:
    """Copies of Python's standard library, in the folder."""
    for copy in range(COPIES):
        for source in Corpus().sources:
            path = folder / "text" / str(copy) / source.name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source.path, path)
    return [str(folder / "text")]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--anyway", action="store_true")
    parser.add_argument("--vocab-size", type=int, default=32768)
    options = parser.parse_args()
    if not options.anyway:
        refuse_while_busy()
    load = busy()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = options.paths or library(folder)
        contents = [document.content for document in Corpus(paths)]
        texts = ["".join(chunks(content)) for content in contents if isinstance(content, str | LargeText)]
        (folder / "tokenizer").mkdir()
        for file, raw in tokenizer_files(train_tokenizer(texts[:500], options.vocab_size)).items():
            (folder / "tokenizer" / file).write_bytes(raw)
        seconds = [(prepared(folder, paths), encoded(folder, texts)) for _ in range(ROUNDS)]
        made = read_folder(folder / "out")
        tokens = len(made.train.tokens) + len(made.heldout.tokens)
        ratios = [alone / whole for whole, alone in seconds]
        table = Table("", "tokens/s", "share", "lowest..highest")
        whole, alone = (tokens / statistics.median(column) for column in zip(*seconds, strict=True))
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        table.add_row("encode_batch_fast in memory", f"{alone:,.0f}", "1", "")
        table.add_row("prenorm data, from file to file", f"{whole:,.0f}", f"{statistics.median(ratios):.2f}", spread)
        table.add_row("batches of a run, on one core", f"{loaded(made):,.0f}", "", "")
        console = Console(width=120)
        console.print(table)
        console.print(f"{tokens:,} tokens; {describe()}; others used {load:.0%} of the processors at the start")


if __name__ == "__main__":
    main()
