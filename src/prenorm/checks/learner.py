"""A learner's block: built with arguments under the learner's own names, and run with numbers of ours."""

import math
import time
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from .parameters import Raw, Sizes
from .subject import EndedError, Subject

# What arguments of constructors and of forward are called. Ours first.
ARGUMENTS = {
    "d_model": "d_model dim hidden_size embed_dim n_embd model_dim emb_dim embedding_dim width dmodel d",
    "num_heads": "num_heads n_heads n_head nhead heads num_attention_heads h nheads",
    "d_ff": "d_ff intermediate_size dim_feedforward ffn_dim ff_dim mlp_dim d_hidden hidden_dim inner_dim d_mlp dff",
    "max_seq_len": "max_seq_len max_len max_seq_length max_position_embeddings context_length block_size n_ctx "
    "max_positions max_length seq_len context_size max_position",
    "rope_theta": "rope_theta theta rope_base base rotary_base",
    "eps": "eps norm_eps rms_norm_eps layer_norm_eps epsilon",
    "num_kv_heads": "num_kv_heads n_kv_heads num_key_value_heads kv_heads n_kv_head num_kv",
    "causal": "causal is_causal",
    "dropout": "dropout dropout_p p_drop dropout_rate p_dropout drop",
    "device": "device",
    "dtype": "dtype",
}
POSITIONS = [
    "token_positions",
    "positions",
    "position_ids",
    "pos",
    "input_pos",
    "pos_ids",
    "position",
    "token_pos",
    "p",
]
MASKS = ["mask", "attn_mask", "attention_mask"]

MOST_WEIGHTS = 1_000_000

Description = dict[str, Any]


class LearnerError(Exception):
    """The learner's code raised. stage: import, constructor or forward; error: as the driver describes it."""

    def __init__(self, stage: str, error: Description) -> None:
        super().__init__(f"{error['type']}: {error['message']}")
        self.stage = stage
        self.error = error


class MissingError(Exception):
    """The file has no such class. names: those it has."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names


@dataclass(slots=True)
class Answer:
    """What one call gave."""

    y: Tensor
    x_after: Tensor
    requires_grad: bool
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    x_gradient: Tensor | None = None
    operations: frozenset[str] = frozenset()
    created: frozenset[tuple[int, ...]] = frozenset()
    modules_created: int = 0
    masked: bool = False


class Learner:
    """The class under test."""

    def __init__(self, subject: Subject, deadline: float = math.inf) -> None:
        self.subject = subject
        self.deadline = deadline  # of time.monotonic()
        self.constructor: list[Description] | None = None

    def load(self, root: str, module: str, file: str | None, name: str) -> None:
        """Import the file. Raises LearnerError, or MissingError without such a class."""
        reply = self.subject.ask({"op": "load", "root": root, "module": module, "file": file, "name": name})
        if "missing" in reply:
            raise MissingError([str(one) for one in reply["missing"]])
        self.constructor = _or_raise("import", reply)["constructor"]

    def check_time(self) -> None:
        """Raise EndedError when the time of the whole judgement is over: our own search takes of it too."""
        if time.monotonic() > self.deadline:
            raise EndedError("timeout", "the time limit ran out while its numbers were compared")

    def takes(self, name: str) -> bool:
        """Whether the constructor takes the argument that we call name."""
        return self.own_name(name) is not None

    def default(self, name: str) -> Any:
        """The constructor's default for it; None where there is none, or it is no plain number."""
        own = self.own_name(name)
        return next((one["default"] for one in self.constructor or () if one["name"] == own), None)

    def build(
        self, sizes: Sizes, *, to: str | None = None, filled: bool = False, **arguments: Any
    ) -> "Built":
        """A block of these sizes; arguments under our names, and only those that the constructor takes.

        to: the dtype that it is brought to afterwards; filled: see the driver.
        """
        given = {"d_model": sizes.d_model, "num_heads": sizes.num_heads, "d_ff": sizes.d_ff} | arguments
        other = sizes.num_kv_heads != sizes.num_heads or self.default("num_kv_heads") is not None
        if self.takes("num_kv_heads") and (other or self._requires("num_kv_heads")):
            given["num_kv_heads"] = sizes.num_kv_heads
        positional, keywords = self._spelled(given)
        request = {"op": "build", "positional": positional, "arguments": keywords, "to": to, "filled": filled}
        return Built(self, sizes, request)

    def _spelled(self, given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        first = ["d_model", "num_heads", "d_ff"]
        if self.constructor is None or any(self.own_name(name) is None for name in first):
            positional = [given[name] for name in first]
        else:
            positional = []
        rest = [name for name in given if name not in first or not positional]
        keywords = {own: given[name] for name in rest if (own := self.own_name(name)) is not None}
        return positional, keywords

    def own_name(self, name: str) -> str | None:
        """What the constructor calls the argument that we call name; None where it has none."""
        for alias in ARGUMENTS[name].split():
            for one in self.constructor or ():
                if one["name"] == alias and one["kind"] in ("POSITIONAL_OR_KEYWORD", "KEYWORD_ONLY"):
                    return alias
        return None

    def _requires(self, name: str) -> bool:
        own = self.own_name(name)
        return any(one["required"] for one in self.constructor or () if one["name"] == own)


class Built:
    """One block, in the process that runs the learner's code."""

    def __init__(self, learner: Learner, sizes: Sizes, request: Description) -> None:
        self.learner = learner
        self.sizes = sizes
        self.request = request
        self.fresh = False  # build it anew for each call, because calls leave traces
        self.fixed_length = False  # or because it takes sequences of max_seq_len only
        self.hand_positions = False  # 0, 1, 2, ... in every call that says nothing of positions
        reply = _or_raise("constructor", learner.subject.ask(request))
        self.number = reply["block"]
        _check_sizes(reply["parameters"])
        self.parameters: list[Description] = reply["parameters"]
        self.tensors: list[Description] = reply["tensors"]
        self.kept: frozenset[str] = frozenset()  # parameters that stay as they were built
        self.muted: frozenset[str] = frozenset()  # parameters that are zero, such as adapters
        self.plain_weights: list[Description] = []  # tensors that are no parameters and may be weights all the same
        self.forward: list[Description] = reply["forward"] or []
        names = [one["name"] for one in self.forward if one["kind"] != "POSITIONAL_ONLY"]
        self.positions_name = next((name for name in POSITIONS if name in names), None)
        self.mask_name = next((name for name in MASKS if name in names), None)

    @property
    def requires_positions(self) -> bool:
        """Whether forward cannot do without positions."""
        return any(one["required"] for one in self.forward if one["name"] == self.positions_name)

    def draw(self, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Raw:
        """Values for every parameter, drawn afresh; one with two names has them under its first."""
        raw: Raw = {}
        for one in [*self.parameters, *self.plain_weights]:
            if one["same_as"] != one["name"] or one["name"] in self.kept:
                continue  # a second name of the same numbers, or one that stays as it was built
            shape = tuple(one["shape"])
            if one["name"] in self.muted:
                raw[one["name"]] = torch.zeros(shape, dtype=dtype)
                continue
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            if "bias" in one["name"].rpartition(".")[2]:
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
        """Call it. Raises LearnerError when it raises, or gives something of another shape than x."""
        if self.fixed_length:
            own = self.learner.own_name("max_seq_len")
            self.request["arguments"] = self.request["arguments"] | {own: x.shape[-2]}
        if self.fresh or self.fixed_length:
            self.number = _or_raise("constructor", self.learner.subject.ask(self.request))["block"]
        keywords = {}
        if positions is None and (self.requires_positions or self.hand_positions):
            positions = torch.arange(x.shape[-2])
        if positions is not None and self.positions_name is not None:
            keywords[self.positions_name] = positions
        if mask is not None and self.mask_name is not None:
            keywords[self.mask_name] = mask
        request = {"op": "run", "block": self.number, "parameters": raw, "inputs": [x], "keywords": keywords}
        request |= {"cotangent": cotangent} | options
        reply = _or_raise("forward", self.learner.subject.ask(request))
        y, x_after = reply["y"], reply["x_after"]
        if y.shape != x.shape or not y.is_floating_point():
            given = f"{tuple(y.shape)} in {str(y.dtype).removeprefix('torch.')}"
            raise _refused("forward", f"the output must have the input's shape {tuple(x.shape)}, but it is {given}")
        gradients, x_gradient = reply.get("gradients", {}), reply.get("x_gradient")
        shapes = {one["name"]: tuple(one["shape"]) for one in self.parameters}
        for name, gradient in [*gradients.items(), ("x", x_gradient)]:
            expected = tuple(x.shape) if name == "x" and gradient is x_gradient else shapes.get(name)
            if gradient is not None and (tuple(gradient.shape) != expected or not gradient.is_floating_point()):
                raise _refused("forward", f"the gradient of {name} must have its shape {expected}")
        return Answer(
            y=y,
            x_after=x_after,
            requires_grad=reply["requires_grad"],
            gradients=gradients,
            x_gradient=x_gradient,
            operations=frozenset(reply.get("operations", ())),
            created=frozenset(tuple(shape) for shape in reply.get("created", ())),
            modules_created=reply.get("modules_created", 0),
            masked=bool(reply.get("masked", False)),
        )

    def values(self) -> Raw:
        """The numbers that its parameters hold, but for those of other packages' classes, whose models draw them."""
        reply = _or_raise("constructor", self.learner.subject.ask({"op": "values", "block": self.number}))
        shapes = {one["name"]: tuple(one["shape"]) for one in self.parameters}
        return {
            name: value
            for name, value in reply["values"].items()
            if tuple(value.shape) == shapes.get(name) and not _of_another_package(reply["owners"].get(name, ""))
        }

    def take_plain_weights(self) -> bool:
        """Treat buffers and plain attributes of a weight's shape as weights. Gives whether there are any."""
        width, inner = self.sizes.d_model, self.sizes.d_ff
        matrices = {(width, width), (width, inner), (inner, width), (3 * width, width), (2 * inner, width)}
        self.plain_weights = [one for one in self.tensors if tuple(one["shape"]) in matrices | {(width,)}]
        return bool(self.plain_weights)

    def run_on_meta(self, x: Tensor) -> Description:
        """The driver's reply to a call on the meta device."""
        return self.learner.subject.ask({"op": "run_on_meta", "block": self.number, "inputs": [x]})


def _of_another_package(file: str) -> bool:
    """Whether a class is installed; torch's layers are everybody's."""
    parts = PurePath(file).parts
    return "site-packages" in parts and "torch" not in parts


def _check_sizes(parameters: list[Description]) -> None:
    """A block of these sizes has some 10,000 weights; one that has millions would cost the judge its memory."""
    count = sum(math.prod(one["shape"]) for one in parameters)
    if count > MOST_WEIGHTS or any(size < 0 for one in parameters for size in one["shape"]):
        raise _refused("constructor", f"a block of d_model=32, d_ff=52 has some 10,000 weights, but this has {count}")


def _refused(stage: str, message: str) -> LearnerError:
    return LearnerError(stage, {"type": "refused", "message": message, "frames": []})


def _or_raise(stage: str, reply: Description) -> Description:
    if "error" in reply:
        raise LearnerError(stage, reply["error"])
    return reply
