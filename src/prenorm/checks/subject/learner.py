"""A learner's block: built with the learner's own argument names, and run with the judge's numbers."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

from ..formula.parameters import OF_POSITIONS, Raw, Sizes
from ..source.code import Code
from .answer import Answer, answer
from .protocol import EndedError, Subject
from .raised import Description, LearnerError, MissingError, or_raise, refused
from .recipe import Line, Recipe

MOST_WEIGHTS = 1_000_000
PRENORM = Path(__file__).resolve().parents[2]
"""The folder of this package, whose own block is right."""

SEARCHED = 0.6
"""The share of the time limit that searches may use, in the judge's own CPU time: a slow block's is not counted."""


SINGLE = 14
"""Sequences of one token in a call: no other size, and the same in every check; einx compiles for each shape."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """The sequence lengths that the checks use: the usual one, and for a single token as many equal ones as must be.

    Attention gives a token repeated what it gives that token alone, because its weights sum to one.
    """

    usual: int = 7
    single: int = 1


class Learner:
    """The class under test, and how it is built and called."""

    def __init__(self, subject: Subject, deadline: float = math.inf) -> None:
        self.subject = subject
        self.deadline = deadline  # of time.monotonic()
        self.search_until = time.thread_time() + SEARCHED * (deadline - time.monotonic())
        self.made: Description = {}
        self.recipe = Recipe(Line(""))

    def load(self, code: Code) -> None:
        """Import the file. Raises LearnerError, or MissingError if there is no such class."""
        request: Description = {
            "op": "load",
            "root": code.root,
            "module": code.module,
            "file": code.file,
            "name": code.name,
        }
        request |= {
            "texts": code.texts,
            "left_out": code.left_out,
            "beside": code.beside,
            "distributions": code.distributions,
        }
        reply = self.subject.ask(request)
        if "missing" in reply:
            raise MissingError([str(one) for one in reply["missing"]])
        self.made = or_raise("import", reply)

    def look_beside(self) -> None:
        """Import neighbouring files that define rotations, too."""
        self.made = or_raise("import", self.subject.ask({"op": "look_beside"}))

    def check_time(self) -> None:
        """Raise EndedError if the time of the whole judgement is over, which includes the judge's own search."""
        if time.monotonic() > self.deadline:
            raise EndedError("timeout", "the time limit ran out while its numbers were compared")

    def takes(self, name: str) -> bool:
        """Whether the line that builds it can use this setting, or for tables the one that calls it."""
        return self.recipe.build.takes(name) or (name in OF_TABLES and self.recipe.call.takes(name))

    def default(self, name: str) -> Any:
        """The constructor's default for it; None if there is none, or it is not a plain value."""
        argument = self.recipe.build.argument(name)
        return None if argument is None else argument.default

    def build(
        self,
        sizes: Sizes,
        *,
        to: str | None = None,
        filled: bool = False,
        origins: bool = False,
        **arguments: Any,
    ) -> "Built":
        """A block of these sizes; arguments under our names, and only those that the constructor takes.

        to: the dtype that it is brought to afterwards; filled, origins: see the driver.
        """
        given = {"d_model": sizes.d_model, "num_heads": sizes.num_heads, "d_ff": sizes.d_ff, "head_dim": sizes.head_dim}
        asked = set(arguments)
        if sizes.num_kv_heads != sizes.num_heads:
            asked.add("num_kv_heads")
        given |= {"num_kv_heads": sizes.num_kv_heads} | USUAL | arguments
        line = self.recipe.build.written(frozenset(asked))
        request = {"op": "build", "line": line, "values": given, "to": to, "filled": filled, "origins": origins}
        return Built(self, sizes, request)


OF_TABLES = ("rope_theta", "max_seq_len")
"""Settings that the call may use too, for tables of angles."""
USUAL = {"max_seq_len": 24, "rope_theta": 10000.0, "eps": 1e-6, "dropout": 0.0}


LARGEST = 16
"""Times d_model squared: what is larger is a table, and no weight."""

FACTOR = 0.75
"""What a parameter of one number is in every draw."""


class Built:
    """One block, in the process that runs the learner's code."""

    def __init__(self, learner: Learner, sizes: Sizes, request: Description) -> None:
        self.learner = learner
        self.sizes = sizes
        self.request = request
        self.fresh = False  # build it anew for each call, because calls change it
        self.fixed_length = False  # or because it takes sequences of max_seq_len only
        self.lengths = Lengths()  # at which it runs
        reply = or_raise("constructor", learner.subject.ask(request))
        self.number = reply["block"]
        _check_sizes(reply["parameters"], sizes)
        self.parameters: list[Description] = reply["parameters"]
        self.tensors: list[Description] = reply["tensors"]
        self.kept: frozenset[str] = frozenset()  # parameters that stay as they were built
        self.muted: frozenset[str] = frozenset()  # parameters that are zero, such as adapters
        self.plain_weights: list[Description] = []  # tensors that are no parameters and may be weights all the same
        self.of_prenorm: list[str] = []  # the classes of its weights that are prenorm's
        self.made_of: frozenset[str] = frozenset()  # the classes of its modules, with those that they inherit from
        self.classes: dict[str, str] = {}  # by parameter, the class of its module, where that is none of torch's
        self.forward: list[Description] | None = reply["forward"]
        self.read: dict[str, Any] = reply["read"]
        self.layers: list[str] = reply["layers"]  # the classes of layers that it stacks
        learner.made["notes"] |= reply["notes"]
        self.origins: dict[str, list[Description]] = reply.get("origins", {})  # of its weights' numbers, if asked for

    @property
    def positions_name(self) -> str | None:
        """The argument that passes positions, or "tables"; None if nothing does."""
        call = self.learner.recipe.call
        argument = call.argument("positions")
        return (argument.name or "positions") if argument else "tables" if call.uses & {"positions", *TABLES} else None

    @property
    def positions_by_row(self) -> bool:
        """Whether each sequence of a batch may have positions of its own."""
        return not self.learner.recipe.call.uses & {*TABLES, "rows"}

    @property
    def mask_name(self) -> str | None:
        """The argument that passes a mask; None if nothing does."""
        call = self.learner.recipe.call
        return next((one.name or "mask" for one in call.arguments if "mask" in one.uses), None) or (
            "mask" if "mask" in call.uses else None
        )

    def elsewhere(self) -> dict[str, str]:
        """Names in both lines that are those of another file than the one under test, and of which."""
        recipe = self.learner.recipe
        request = {"op": "elsewhere", "block": self.number}
        request |= {"build": recipe.build.written(), "call": recipe.call.written()}
        files: dict[str, str] = or_raise("constructor", self.learner.subject.ask(request))["files"]
        return files

    def draw(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Raw:
        """New random values for every parameter; one with two names has them under its first."""
        raw: Raw = {}
        for one in [*self.parameters, *self.plain_weights]:
            if one["same_as"] != one["name"] or one["name"] in self.kept:
                continue  # a second name of the same numbers, or one that stays as it was built
            shape = tuple(one["shape"])
            if not one["requires_grad"] and math.prod(shape) < self.sizes.head_dim and one in self.parameters:
                continue  # frequencies, of which a block may have computed its tables
            if one["name"] in self.muted:
                raw[one["name"]] = torch.zeros(shape, dtype=dtype)
                continue
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            if values.numel() == 1:  # a factor, which must not change from draw to draw once it is fitted
                values = torch.full(shape, FACTOR, dtype=torch.float64)
            elif "bias" in one["name"].rpartition(".")[2]:
                values = values * 0.3
            elif max(shape, default=0) == values.numel():
                values = 1 + 0.3 * values
            else:
                values = values * (1.2 / self.sizes.d_model**0.5)
            raw[one["name"]] = values.to(dtype)
        return raw

    def run(
        self,
        raw: Raw | None,
        x: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cotangent: Tensor | None = None,
        **options: Any,
    ) -> Answer:
        """Call it. Raises LearnerError if it raises, or returns something of another shape than x."""
        if self.fixed_length:
            self.request["values"] = self.request["values"] | {"max_seq_len": x.shape[-2]}
        if self.fresh or self.fixed_length:
            self.number = or_raise("constructor", self.learner.subject.ask(self.request))["block"]
        asked = [name for name, value in (("positions", positions), ("mask", mask)) if value is not None]
        request = {"op": "run", "block": self.number, "parameters": raw, "inputs": [x]}
        request |= {"line": self.learner.recipe.call.written(frozenset(asked))}
        request |= {"values": {"positions": positions, "mask": mask}, "cotangent": cotangent} | options
        reply = or_raise("forward", self.learner.subject.ask(request))
        shapes = {one["name"]: tuple(one["shape"]) for one in self.parameters}
        return answer(reply, tuple(x.shape), shapes)

    def run_at(self, positions: Tensor, raw: Raw, x: Tensor) -> tuple[Tensor, Answer]:
        """Call it with positions (batch, seq), or (seq,) of the first one if that raises: those, and the answer.

        Where tables are made for the positions, every sequence has the same, which some blocks want for each of them.
        """
        first, other = positions, positions[0]
        if not self.positions_by_row:
            first, other = other, other.expand_as(positions)
        try:
            return first, self.run(raw, x, positions=first)
        except LearnerError as error:
            try:
                return other, self.run(raw, x, positions=other)
            except LearnerError:
                raise error from None

    def seen(self, raw: Raw, x: Tensor, modules: Sequence[str]) -> dict[str, Description]:
        """What these modules are given and give in a call; if it raises, those that have finished before."""
        try:
            seen = self.run(raw, x, seen=[*modules]).seen
        except LearnerError as error:
            seen = error.error.get("seen", {})
        return {name: seen[name] for name in modules if name in seen}

    def values(self) -> Raw:
        """The values of its parameters, without those of other packages' classes, which their models initialise.

        Embeddings are no part of a block: torch gives them a standard deviation of one.
        """
        reply = or_raise("constructor", self.learner.subject.ask({"op": "values", "block": self.number}))
        shapes = {one["name"]: tuple(one["shape"]) for one in self.parameters}
        self.made_of = frozenset(reply["modules"])
        files = {str(owner): PurePath(reply["owners"].get(name, "")) for name, owner in reply["classes"].items()}
        self.of_prenorm = sorted(owner for owner, file in files.items() if PRENORM in file.parents)
        self.classes = {
            name: str(owner)
            for name, owner in reply["classes"].items()
            if "torch" not in PurePath(reply["owners"].get(name, "")).parts
        }
        return {
            name: value
            for name, value in reply["values"].items()
            if tuple(value.shape) == shapes.get(name)
            and not _of_another_package(reply["owners"].get(name, ""))
            and reply["classes"].get(name) != "Embedding"
        }

    def tensors_as_weights(self) -> list[Description]:
        """Buffers and plain attributes with a weight's shape: of width d_model, or a matrix from or to that width."""
        return [one for one in self.tensors if self._is_weight(one["name"], tuple(one["shape"]))]

    def _is_weight(self, name: str, shape: tuple[int, ...]) -> bool:
        width, count = self.sizes.d_model, math.prod(shape)
        if width not in shape or OF_POSITIONS.search(name) or shape[0] == self.request["values"]["max_seq_len"]:
            return False
        return count == width or self.sizes.head_dim * width <= count <= LARGEST * width**2

    def take_plain_weights(self) -> bool:
        """Treat those as weights. Returns whether there are any."""
        self.plain_weights = self.tensors_as_weights()
        return bool(self.plain_weights)

    def run_on_meta(self, x: Tensor, *, built_there: bool = False) -> Description:
        """The driver's reply to a call on the meta device; the block is moved there, unless it was built there."""
        request = {"op": "run_on_meta", "block": self.number, "inputs": [x], "built_there": built_there}
        return self.learner.subject.ask(request | {"line": self.learner.recipe.call.written()})


def _of_another_package(file: str) -> bool:
    """Whether a class is from an installed package other than torch."""
    parts = PurePath(file).parts
    return "site-packages" in parts and "torch" not in parts


TABLES = ("cos", "sin", "freqs_cis", "angles")


def _check_sizes(parameters: list[Description], sizes: Sizes) -> None:
    """Refuse a block with millions of weights, which would use up the judge's memory."""
    count = sum(math.prod(one["shape"]) for one in parameters)
    usual = 4 * sizes.d_model**2 + 3 * sizes.d_model * sizes.d_ff
    if count > max(MOST_WEIGHTS, 10 * usual) or any(size < 0 for one in parameters for size in one["shape"]):
        raise refused(
            "constructor",
            f"a block of d_model={sizes.d_model}, d_ff={sizes.d_ff} has about {usual:,} weights, this has {count:,}",
        )
