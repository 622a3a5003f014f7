"""Where tensors are made, and that those of two devices never meet."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Home(DeviceContext):
    """A default device for what is made anew; as_tensor of a tensor makes nothing, and leaves it where it is."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.as_tensor, torch.asarray) and args and isinstance(args[0], Tensor):
            kwargs.setdefault("device", args[0].device)
        return super().__torch_function__(function, types, args, kwargs)


class AtHome:
    """A block whose own new tensors are made where they always are, whatever the line around it sets."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the block gives."""
        with _Home("cpu"):
            return self.block(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the block has."""
        return getattr(self.block, name)


class OneDevice(TorchDispatchMode):
    """Raises where tensors of two devices meet: some operations of the meta device do not look, as masked_fill."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function.name()).removeprefix("aten::").partition(".")[0]
        if name in ("_to_copy", "copy_") and (brought := _brought_back(args, kwargs or {})) is not None:
            return brought
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor) and one.dim()]
        if len({one.device for one in given}) > 1:
            looked_up = name.startswith("index") and given[0].device.type == "meta"  # indices may stay behind
            if not looked_up and name not in ("_to_copy", "copy_"):
                raise RuntimeError(f"Expected all tensors to be on the same device, but {name} met two")
        return function(*args, **(kwargs or {}))


def _brought_back(args: Any, kwargs: Any) -> Tensor | None:
    """Zeros, where numbers are asked back from the meta device, which has none: any real device would give them."""
    source = args[-1] if len(args) > 1 and isinstance(args[1], Tensor) else args[0]
    target = args[0] if source is not args[0] else kwargs.get("device")
    device = target.device if isinstance(target, Tensor) else target
    if source.device.type != "meta" or device is None or torch.device(device).type == "meta":
        return None
    if isinstance(target, Tensor):
        return target.zero_()
    return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=device)
