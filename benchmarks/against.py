"""This checkout against another one, an older commit say: the same bits, and as fast? `make against OLD=../old`.

Bits: a fixed set of calls (alone and in a model; plain, cached, ragged, packed, windowed, compiled; float64, float32,
bfloat16; forward and gradients; decoder and encoder) gives the same bits in both, or is named.

Speed: a block, a training step, a step of `prenorm train` and every cell of `make bench-decode` run in processes of
their own: the old checkout, this one, and the old one once more, in turn, so that the last two ratios tell a change
from chance. --starts says how often the processes are started anew: where memory lies differs each time. The table has
the medians of all rounds: old / new, old / old, and their lowest and highest start; above 1 the second is faster.

--ragged has another table, of this checkout alone: decoding rows of different lengths, layer by layer, beside rows of
one length, with and without a window.
"""

import argparse
import hashlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from processes import Process

HERE = Path(__file__).parent.parent
DECODE = [f"decode-{what}-{dtype}" for dtype in ("float32", "bfloat16") for what in ("1", "8", "prefill")]
CELLS = [f"{what}-{dtype}" for what in ("forward", "both", "step") for dtype in ("float32", "bfloat16")] + DECODE
TRAIN = ["train-demo", "train-110M"]  # steps of `prenorm train`, in the format that it takes by itself
CELLS += TRAIN
ROUNDS = {"forward": 15, "both": 9, "step": 3, "decode": 5, "train": 15}
TIMES = {"forward": 10, "both": 4, "step": 1, "decode": 1, "train": 1}  # calls a round


class Contestant:
    """A checkout, in a process that has imported no other."""

    def __init__(self, checkout: Path) -> None:
        sys.path.insert(0, str(checkout / "src"))
        import prenorm

        assert Path(prenorm.__file__).is_relative_to(checkout), f"{prenorm.__file__} is not of {checkout}"
        self.cell, self.run = "", lambda: None

    def bits(self) -> dict[str, str]:
        """A hash for each call of the fixed set."""
        return {name: hashed(call()) for name, call in calls().items()}

    def prepare(self, cell: str) -> None:
        """Make what a cell measures, and run it once."""
        self.run = lambda: None  # what was there before gives its memory back
        self.run = runner(cell)
        self.run()

    def measure(self, times: int) -> None:
        """Run it."""
        for _ in range(times):
            self.run()


def hashed(tensors: Any) -> str:
    """Of the bytes of a tensor, or of several."""
    import torch

    digest = hashlib.sha256()
    for tensor in tensors if isinstance(tensors, list | tuple) else [tensors]:
        digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def calls() -> dict[str, Callable[[], Any]]:
    """The fixed set."""
    import torch

    from prenorm import EncoderDecoder, EncoderDecoderConfig, ModelConfig, TransformerBlock, TransformerLM

    made: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(97, (3, 40), generator=generator)
    rows = torch.tensor([[0] * 40, [-1] * 9 + [0] * 31, [0] * 3 + [-1] * 37])
    packed = torch.tensor([[0] * 11 + [1] * 20 + [0] * 9, [4] * 40, [-1] * 5 + [2] * 30 + [-1] * 5])
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "window": {"window": 7, "num_kv_heads": 2},
        "every option": {"qk_norm": True, "qkv_bias": True, "o_bias": True, "rope_interleaved": True},
    }

    def in_pieces(call: Callable[..., Any], x: Any, cache: Any, sizes: list[int], **options: Any) -> Any:
        pieces = zip(x.split(sizes, 1), *(value.split(sizes, 1) for value in options.values()), strict=True)
        return [call(piece, **dict(zip(options, rest, strict=True)), cache=cache) for piece, *rest in pieces]

    def gradients(model: Any, loss: Any) -> Any:
        model.zero_grad()
        loss.backward()
        return [parameter.grad for parameter in model.parameters()]

    def of_block(block: Any, x: Any) -> Any:
        return [block(x), block(x, segment_ids=packed)]

    def masked_block(block: Any, x: Any) -> Any:
        return block(x, mask=torch.rand(40, 40) > 2)

    for dtype in ("float64", "float32", "bfloat16"):
        torch.manual_seed(1)
        for kind, options in kinds.items():
            config = ModelConfig(97, 64, 3, 4, d_ff=96, max_seq_len=128, **options)
            model = TransformerLM(config).to(getattr(torch, dtype)).eval()
            block = TransformerBlock(64, 4, 96, causal=True).to(getattr(torch, dtype)).eval()
            x = torch.randn(3, 40, 64, generator=generator).to(getattr(torch, dtype))
            name = f"{kind}, {dtype}"
            made |= {
                f"model, {name}": lambda model=model: model(ids),
                f"packed, {name}": lambda model=model: model(ids, segment_ids=packed),
                f"positions, {name}": lambda model=model: model(ids, torch.arange(40) * 3),
                f"gradients, {name}": lambda model=model: gradients(model, model.loss(ids[:, :-1], ids[:, 1:])),
                f"block, {name}": partial(of_block, block, x),
                f"block, mask, {name}": partial(masked_block, block, x),
            }
            for grad in (True, False):

                def cached(model: Any = model, block: Any = block, x: Any = x, grad: bool = grad) -> Any:
                    with torch.set_grad_enabled(grad):
                        cache, other, small = model.make_cache(3, 50), model.make_cache(3, 50), block.make_cache(3, 50)
                        sizes = [12, 1, 1, 20, 6]
                        found = in_pieces(model, ids, cache, sizes) + in_pieces(block, x, small, sizes)
                        found += in_pieces(model, ids, other, [30, 10], segment_ids=rows)
                        ragged = [model(ids[:, i : i + 1], cache=other) for i in range(6)]
                        real = [y[part >= 0] for y, part in zip(found[-2:], rows.split([30, 10], 1), strict=True)]
                        return found[:-2] + real + ragged

                made[f"cached, {'grad' if grad else 'no grad'}, {name}"] = cached
            made[f"generate, {name}"] = lambda model=model: torch.tensor(
                model.generate([[1, 2, 3], [4] * 9], max_new_tokens=20, temperature=0)
            )
            made[f"by hand, {name}"] = lambda model=model: by_hand(model, ids)
        made[f"compiled, {dtype}"] = lambda model=model: torch.compile(model, fullgraph=True)(ids)
        twins = EncoderDecoder(EncoderDecoderConfig(97, 64, 2, 4)).to(getattr(torch, dtype)).eval()
        made |= {
            f"encoder-decoder, {dtype}": lambda twins=twins: twins(ids, ids.flip(1)),
            f"encoder-decoder, packed, {dtype}": lambda twins=twins: twins(
                ids, ids, source_segment_ids=rows, target_segment_ids=rows
            ),
            f"encoder-decoder, cached, {dtype}": lambda twins=twins: in_pieces(
                twins.decode, ids, twins.make_cache(ids, 40), [30, 1, 9]
            ),
            f"encoder-decoder, gradients, {dtype}": lambda twins=twins: gradients(twins, twins.loss(ids, ids, ids)),
        }
    return made


def by_hand(model: Any, ids: Any) -> list[Any]:
    """A model's layers called one by one with their caches, in chunks of different sizes."""
    cache, x = model.make_cache(3, 50), model.embedding(ids)
    for i, block in enumerate(model.layers):
        import torch

        sizes = [[40], [7, 1, 32], [20, 20]][i % 3]
        x = torch.cat([block(part, cache=cache[i]) for part in x.split(sizes, 1)], 1)
    return [x, model(ids[:, :5], cache=cache)]


def runner(cell: str) -> Callable[[], Any]:
    """What a cell measures."""
    import torch
    from decode import MODELS, drawn, sizes

    from prenorm import TransformerBlock, TransformerLM

    torch.manual_seed(0)
    what, *_, dtype = cell.split("-")
    if what == "train":
        return steps_of(dtype)
    if what == "decode":
        model = TransformerLM(MODELS["110M"]).to(getattr(torch, dtype)).eval()
        same = cell.replace("decode", "110M")
        prompts, (_, _, new) = drawn(same), sizes(same)
        return lambda: model.generate(prompts, max_new_tokens=new, temperature=0)
    if what == "step":
        from training import CONFIG, stepper

        model = TransformerLM(CONFIG).train()
        tokens = torch.randint(CONFIG.vocab_size, (4, 513))
        step = stepper(model, model.loss, dtype)
        return lambda: step(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    block = TransformerBlock(768, 12, 2048, causal=True).to(getattr(torch, dtype))
    x = torch.randn(1, 512, 768, dtype=getattr(torch, dtype), requires_grad=what == "both")
    if what == "both":
        return lambda: block(x).sum().backward()
    return torch.no_grad()(lambda: block(x))


def steps_of(model: str) -> Callable[[], Any]:
    """A step of `prenorm train`, each time the next one: of the demo, or of the preset gpt2-small in small batches."""
    import asyncio  # its source is some 500 kB of text

    from prenorm.training.config import TrainConfig
    from prenorm.training.device import choose_device, hold_on_to_memory
    from prenorm.training.display import Display
    from prenorm.training.tokens import prepare_text
    from prenorm.training.trainer import Trainer

    hold_on_to_memory()
    small = {"preset": "gpt2-small", "context": 512, "batch_size": 4, "micro_batch_size": 4, "compile": False}
    fields = {"preset": "demo", "short_context": 0} if model == "demo" else small
    folder = tempfile.TemporaryDirectory()
    config = TrainConfig.from_fields({**fields, "data": [str(Path(asyncio.__file__).parent)], "out": folder.name})
    data = prepare_text(config, Path(folder.name) / "text", lambda _: None)
    trainer = Trainer(config, data, choose_device(config), Display(quiet=True))
    trainer.compile(0)
    numbers = itertools.count(1)

    def step(folder: Any = folder) -> Any:  # which must outlive this function: the text is in it
        return trainer.step(next(numbers))

    return step


def compare_bits(old: Path) -> bool:
    """Whether all calls give the same bits; prints those that do not."""
    contestants = [Process(Contestant, checkout) for checkout in (old, HERE)]
    (before, _), (after, _) = (one.ask("bits") for one in contestants)
    for one in contestants:
        one.end()
    other = [name for name in before if before[name] != after.get(name)]
    print(f"bits: {len(before) - len(other)} of {len(before)} calls are the same", *other, sep="\n  other: ")
    return not other


def compare_speed(old: Path, cells: list[str], starts: int) -> dict[str, Any]:
    """Seconds of each, by cell, start and round."""
    from machine import refuse_while_busy

    refuse_while_busy()
    found: dict[str, Any] = {cell: [] for cell in cells}
    for _ in range(starts):
        contestants = {"old": old, "new": HERE, "old again": old}
        running = {name: Process(Contestant, checkout) for name, checkout in contestants.items()}
        for cell in cells:
            what = cell.split("-")[0]
            for one in running.values():
                one.ask("prepare", cell)
            seconds: dict[str, list[float]] = {name: [] for name in running}
            for _ in range(ROUNDS[what]):
                for name, one in running.items():
                    seconds[name].append(one.ask("measure", TIMES[what])[1])
            found[cell].append(seconds)
        for one in running.values():
            one.end()
    return found


def table(found: dict[str, Any]) -> None:
    """The ratios."""
    print(f"{'cell':26} {'old / new':>24} {'old / old again':>24}")
    for cell, starts in found.items():
        shown = []
        for other in ("new", "old again"):
            medians = [statistics.median(a / b for a, b in zip(one["old"], one[other], strict=True)) for one in starts]
            every = [a / b for one in starts for a, b in zip(one["old"], one[other], strict=True)]
            shown.append(f"{statistics.median(every):.3f} ({min(medians):.3f}..{max(medians):.3f})")
        print(f"{cell:26} {shown[0]:>24} {shown[1]:>24}")


def ragged(rounds: int = 9, new: int = 48) -> None:
    """Decoding of rows of different lengths beside rows of one length, layer by layer: d_model 128, float64."""
    import torch

    from prenorm import ModelConfig, TransformerLM

    for window in (None, 16):
        config = ModelConfig(256, 128, 12, 4, d_ff=256, max_seq_len=256, window=window)
        model = TransformerLM(config, dtype=torch.float64).eval()
        ids = torch.randint(256, (4, 64), generator=torch.Generator().manual_seed(0))
        marks = torch.tensor([[-1] * (2 * row) + [0] * (64 - 2 * row) for row in range(4)])
        token = ids[:, :1]
        seconds: dict[str, list[float]] = {"equal": [], "ragged": []}
        for round_ in range(rounds + 1):
            for name, options in (("equal", {}), ("ragged", {"segment_ids": marks})):
                cache = model.make_cache(4, 64 + new)
                with torch.inference_mode():
                    model(ids, cache=cache, **options)
                    start = time.perf_counter()
                    for _ in range(new):
                        model(token, cache=cache)
                    if round_:
                        seconds[name].append(time.perf_counter() - start)
        ratios = [a / b for a, b in zip(seconds["ragged"], seconds["equal"], strict=True)]
        median = statistics.median(ratios)
        print(f"ragged / equal, window {window}: {median:.3f} ({min(ratios):.3f}..{max(ratios):.3f})")


def main() -> None:
    """Print both tables; exit code 1 where bits differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, nargs="?", help="another checkout")
    parser.add_argument("--bits", action="store_true", help="the bits alone")
    parser.add_argument("--ragged", action="store_true", help="the table of ragged decoding alone")
    parser.add_argument("--only", nargs="+", choices=CELLS, default=CELLS, metavar="CELL", help=", ".join(CELLS))
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds here too")
    options = parser.parse_args()
    if options.ragged:
        ragged()
        return
    if options.old is None:
        parser.error("name the checkout to compare with")
    same = compare_bits(options.old.resolve())
    if not options.bits:
        found = compare_speed(options.old.resolve(), options.only, options.starts)
        table(found)
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
