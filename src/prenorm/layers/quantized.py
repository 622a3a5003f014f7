"""The linear layer with an int8 or int4 weight."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.quantized import SCALE, pack, packed_shapes, quantize, quantized_linear, unpack
from ..validation import check_size
from .linear import Linear


class QuantizedLinear(nn.Module):
    """A `Linear` whose weight is quantised to "int8" or "int4": see `prenorm.ops.quantized`.

    The packed integers and the scales of their groups are the buffers `weight` and `scale`, saved and moved with the
    model; they are not parameters. Changing the model's dtype changes that of inputs, bias and outputs, but not theirs.
    It has no gradients. Initialised to zero; `of` makes one from a `Linear`.
    """

    weight: Tensor
    scale: Tensor
    dtype_tag: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kind: str,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("in_features", in_features)
        check_size("out_features", out_features)
        self.in_features, self.out_features, self.kind = in_features, out_features, kind
        packed, scales = packed_shapes((out_features, in_features), kind)
        self.register_buffer("weight", torch.zeros(packed, device=device, dtype=torch.uint8))
        self.register_buffer("scale", torch.zeros(scales, device=device, dtype=SCALE))
        # Empty: only its dtype matters, which is that of the outputs and follows the model's.
        self.register_buffer("dtype_tag", torch.empty(0, device=device, dtype=dtype), persistent=False)
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype), False) if bias else None

    @classmethod
    def of(cls, linear: Linear, kind: str) -> "QuantizedLinear":
        """A quantised copy of a linear layer."""
        weight, bias = linear.weight, linear.bias
        with torch.device("meta"):
            made = cls(linear.in_features, linear.out_features, kind)
        made.weight, made.scale = pack(*quantize(weight, kind), kind)
        made.dtype_tag = weight.detach().new_empty(0)
        made.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        return made.train(linear.training)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the output."""
        return self.dtype_tag.dtype

    def unpacked(self) -> tuple[Tensor, Tensor]:
        """The unpacked integers (out_features, in_features), int8, and the scales (out_features, groups of 32)."""
        return unpack(self.weight, self.scale, (self.out_features, self.in_features))

    def forward(self, x: Float[Tensor, "*batch {self.in_features}"]) -> Float[Tensor, "*batch {self.out_features}"]:
        """See `prenorm.ops.quantized.quantized_linear`."""
        return quantized_linear(x, self.weight, self.scale, self.bias, out_features=self.out_features)

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"kind={self.kind}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantizedLinear":
        """As `to()` and similar calls use it; scales change their device, but keep their dtype."""
        scale = self.scale
        super()._apply(fn, recurse)
        if self.scale.dtype != SCALE:
            self.scale = scale.to(self.weight.device)
        return self


def prepare(model: nn.Module, kind: str) -> None:
    """Replace the linear layers of a model without weights by quantised ones, as `TransformerLM.quantize` does."""
    for name, linear in [(name, module) for name, module in model.named_modules() if isinstance(module, Linear)]:
        bias, weight = linear.bias is not None, linear.weight
        made = QuantizedLinear(
            linear.in_features, linear.out_features, kind, bias, device=weight.device, dtype=weight.dtype
        )
        model.set_submodule(name, made)


def kind_of(model: nn.Module) -> str | None:
    """The kind of a quantised model, "int8" or "int4"; None for a model that is not quantised."""
    return next((module.kind for module in model.modules() if isinstance(module, QuantizedLinear)), None)
