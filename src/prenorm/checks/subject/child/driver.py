"""What runs beside a learner's code: it loads a class, builds it and runs it, and gives back raw numbers.

It judges nothing: whatever the learner's code does to this process, a wrong number stays a wrong number.
Imports the standard library and torch only, so that prenorm need not be importable where it runs.
A request and its reply are dictionaries of None, bool, int, float, str, lists, dictionaries and tensors.
"""

import contextlib
import inspect
import itertools
import os
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .importing import Importer
from .names import TABLES, Config, namespace, of_build, of_call, used
from .signatures import DEFINES_ROTATIONS, helpers, parameters

Request = dict[str, Any]
Reply = dict[str, Any]

FRAMES = 12  # of a traceback, the innermost
TEXT = 2000  # characters of an error's message
MOST_SITES = 200
PROMOTED = "became float32"
DISPATCHING = ("_python_dispatch.py", "_compile.py", "eval_frame.py")  # between a statement and a dispatch mode
TORCH = os.path.dirname(torch.__file__)


class Driver:
    """Answers requests about one class or factory. What the learner's code raises becomes {"error": {...}}."""

    def __init__(self) -> None:
        self._make: Callable[..., Any] | None = None
        self._name = "make"
        self._module: types.ModuleType | None = None
        self._importer: Importer | None = None
        self._file: str | None = None
        self._own: dict[str, Any] = {}  # the learner's names
        self._blocks: dict[int, nn.Module] = {}
        self._names: dict[int, dict[str, Any]] = {}  # by block, what its lines may use

    def handle(self, request: Request) -> Reply:
        """The reply to one request; its "op" names one of the methods below."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return getattr(self, "op_" + request["op"])(request)
        except BaseException as error:  # sys.exit() and KeyboardInterrupt of the learner are its errors too
            return {"error": described(error)}

    def op_load(self, request: Request) -> Reply:
        """Import root/file as module (or module from root, without a file), and find name in it.

        "text" is run in place of the file's own; "beside" and "distributions" are importing.Importer's.
        Gives use()'s reply, or {"missing": names that the module has} without such a name.
        """
        self._importer = Importer(request["root"], request.get("beside", {}), request.get("distributions", {}))
        self._file = request["file"]
        module = self._importer.module(request["module"], request["file"], request.get("text"))
        found: Any = module
        for part in request["name"].split("."):
            if not hasattr(found, part):
                return {"missing": [name for name, value in vars(module).items() if _is_own(value, module)][:50]}
            found = getattr(found, part)
        if not callable(found):
            return {"missing": [name for name, value in vars(module).items() if _is_own(value, module)][:50]}
        self._module = module
        return self.use(found, request["name"])

    def op_look_beside(self, request: Request) -> Reply:
        """Import the files beside it that define rotations; the reply is use()'s."""
        if self._importer is not None:
            self._importer.neighbours(DEFINES_ROTATIONS, self._file)
        assert self._make is not None, "a class is loaded first"
        return self.use(self._make, self._name)

    def use(self, make: Callable[..., Any], name: str | None = None) -> Reply:
        """Judge this class or factory.

        Gives {"name": what lines call it, "constructor": its parameters, "is_class", "helpers": what else of the
        learner's may serve (see signatures.helpers), "notes": what stands in for something at import}.
        """
        if name is None:
            own = getattr(make, "__name__", "")
            name = own if own.isidentifier() else "make"
            self._module = sys.modules.get(str(getattr(make, "__module__", "")))
        self._make, self._name = make, name
        modules = [] if self._importer is None or self._file is None else self._importer.modules()
        self._own = namespace(modules, self._module)
        constructor = parameters(make)
        return {
            "name": name,
            "constructor": constructor,
            "is_class": inspect.isclass(make),
            "helpers": helpers(self._own, make, constructor or ()),
            "notes": {} if self._importer is None else self._importer.notes,
        }

    def op_build(self, request: Request) -> Reply:
        """Evaluate "line" with "values" (see names.py), or call the class with "positional" and "arguments".

        "to" names the dtype that the result is brought to; "filled" puts NaN into memory that the constructor leaves
        uninitialised. {"dtype": name} and {"device": name} stand for torch's own.
        Gives {"block": number, "parameters", "tensors" (buffers, and plain attributes), "forward", "read": what was
        asked of a configuration of ours}.
        """
        assert self._make is not None, "a class is loaded first"
        torch.manual_seed(request.get("seed", 0))
        filled = _filled if request.get("filled") else contextlib.nullcontext
        if "line" not in request:
            arguments = {name: _spelled_out(value) for name, value in request.get("arguments", {}).items()}
            with filled():
                block = self._make(*request.get("positional", ()), **arguments)
            return self.add(block, to=request.get("to"))
        names = of_build({name: _spelled_out(value) for name, value in request["values"].items()})
        wanted = used(request["line"])
        positions = torch.arange(names["max_seq_len"])
        names |= of_call(wanted & {*TABLES}, names, positions[:, None].double(), {"positions": positions})
        made: list[Config] = []

        def config(base: Any = None, **given: Any) -> Config:
            made.append(Config(names, given, base))
            return made[-1]

        names = self._own | names | {"config": config}
        if "." not in self._name:
            names[self._name] = self._make
        with filled():
            block = eval(request["line"].strip(), names)
        reply = self.add(block, to=request.get("to"))
        self._names[reply["block"]] = names
        for one in made:
            reply["read"] |= one.__dict__["read"]
        return reply

    def add(self, block: Any, *, to: str | None = None) -> Reply:
        """Take a block that is built already; the reply is op_build's."""
        if not isinstance(block, nn.Module):
            raise TypeError(f"a block must be a torch.nn.Module, but the constructor gave {type(block).__name__}")
        if (unfinished := _unfinished(block)) is not None:
            raise UnfinishedError(unfinished)
        if to is not None:
            dtype = getattr(torch, to)  # complex tables stay as they are: Module.to would drop their imaginary part
            block = block._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
        number = len(self._blocks)
        self._blocks[number] = block
        return {
            "block": number,
            "parameters": _listed(block.named_parameters(remove_duplicate=False)),
            "tensors": _listed(_held(block)),
            "forward": parameters(block.forward),
            "read": {},
        }

    def op_values(self, request: Request) -> Reply:
        """Gives {"values"}: what the parameters hold now, by name; {"owners", "classes"}: where their classes stand."""
        block = self._blocks[request["block"]]
        named = dict(block.named_parameters(remove_duplicate=False))
        classes = {name: type(block.get_submodule(name.rpartition(".")[0])) for name in named}
        return {
            "values": {name: _plain(parameter) for name, parameter in named.items()},
            "owners": {name: _file_of(owner) for name, owner in classes.items()},
            "classes": {name: owner.__name__ for name, owner in classes.items()},
        }

    def op_run(self, request: Request) -> Reply:
        """Set "parameters", evaluate "line" with "inputs" and "values", and send "cotangent" back through it.

        Without a line the block is called with "inputs" and "keywords".

        Gives {"y", "x_after", "requires_grad"} and, with a cotangent, {"gradients", "x_gradient"} (None where there is
        none); with "trace" also {"operations", "created" (shapes of new constant tensors), "modules_created", "masked"
        (whether masked_fill filled anything)}. "scramble" puts random numbers in place of tables, and of every sine and
        cosine. "watch" adds "sites" to an error: where the learner's code changed tensors in place, and where a tensor
        became float32 because another one was.
        """
        watch = _Watch() if request.get("watch") else None
        try:
            return self._run(request, watch)
        except Exception as error:
            if watch is None:
                raise
            return {"error": described(error) | {"sites": watch.sites}}

    def _run(self, request: Request, watch: "_Watch | None") -> Reply:
        block = self._blocks[request["block"]]
        block.train(request.get("training", False))
        _set(block, request.get("parameters") or {})
        cotangent = request.get("cotangent")
        inputs = [value.clone() if isinstance(value, Tensor) else value for value in request["inputs"]]
        keywords = {name: v.clone() if isinstance(v, Tensor) else v for name, v in request.get("keywords", {}).items()}
        leaf = inputs[0]
        if cotangent is not None:
            leaf.requires_grad_()
            inputs[0] = leaf.clone()  # what is changed in place may not be a leaf
            block.zero_grad(set_to_none=True)
        trace = _Trace() if request.get("trace") else None
        with contextlib.ExitStack() as stack:
            if (seed := request.get("seed")) is not None:
                torch.manual_seed(seed)
            if cotangent is None:
                stack.enter_context(torch.no_grad())
            if (scramble := request.get("scramble")) is not None:
                stack.enter_context(_scrambled(block, scramble))
                stack.enter_context(_OtherAngles(scramble))
            if watch is not None:
                stack.enter_context(watch)
            if trace is not None:
                stack.enter_context(_traced(block, trace))
            y = _first_tensor(self._called(request, block, inputs, keywords), inputs[0].shape)
        reply = {"y": _plain(y), "x_after": _plain(inputs[0]), "requires_grad": y.requires_grad}
        if trace is not None:
            reply["operations"] = sorted(trace.operations)
            reply["created"] = sorted(trace.created)
            reply["modules_created"] = trace.modules_created
            reply["masked"] = trace.masked
        if cotangent is not None:
            if y.requires_grad:
                y.backward(cotangent.to(y.dtype))
            reply["gradients"] = {
                name: None if p.grad is None else _plain(p.grad)
                for name, p in block.named_parameters(remove_duplicate=False)
            }
            reply["x_gradient"] = None if leaf.grad is None else _plain(leaf.grad)
        return reply

    def _called(self, request: Request, block: nn.Module, inputs: list[Any], keywords: dict[str, Any]) -> Any:
        if "line" not in request:
            return block(*inputs, **keywords)
        line, names = request["line"].strip(), self._names.get(request["block"], {})
        names = names | of_call(used(line), names, inputs[0], request.get("values") or {}) | {"block": block}
        if inputs[0].device.type == "cpu":
            return eval(line, names)
        with torch.device(inputs[0].device):  # what the line makes is made there as well, but not what the block makes
            return eval(line, names | {"block": _AtHome(block)})

    def op_run_on_meta(self, request: Request) -> Reply:
        """Move the block to the meta device, call it with an input there, and forget it. Gives {"shape", "device"}.

        No copy is moved: a lambda that the constructor made would still hold the modules of the first.
        """
        block = self._blocks.pop(request["block"]).to("meta")
        inputs = [value.to("meta") for value in request["inputs"]]
        with torch.no_grad(), _OneDevice():
            y = _first_tensor(self._called(request, block, inputs, {}), inputs[0].shape)
        return {"shape": list(y.shape), "device": str(y.device)}

    def op_forget(self, request: Request) -> Reply:
        """Drop every block."""
        self._blocks.clear()
        return {}


class _Home(DeviceContext):
    """A default device for what is made anew; as_tensor of a tensor makes nothing, and leaves it where it is."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.as_tensor, torch.asarray) and args and isinstance(args[0], Tensor):
            kwargs.setdefault("device", args[0].device)
        return super().__torch_function__(function, types, args, kwargs)


class _AtHome:
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


class UnfinishedError(TypeError):
    """A module whose constructor never calls super().__init__()."""

    def __init__(self, owner: type) -> None:
        super().__init__(f"{owner.__name__}.__init__ never calls super().__init__(), which every nn.Module must")
        code = owner.__init__.__code__  # type: ignore[misc]
        name = f"def __init__ of {owner.__name__}"
        self.frame = {"file": code.co_filename, "line": code.co_firstlineno, "function": "__init__", "code": name}


def _unfinished(module: nn.Module) -> type | None:
    """The class of a module in it, or its own, that is no finished nn.Module."""
    if "_parameters" not in vars(module):
        return type(module)
    inner = (_unfinished(one) for one in module._modules.values() if isinstance(one, nn.Module))
    return next((one for one in inner if one is not None), None)


def described(error: BaseException) -> dict[str, Any]:
    """An exception as {"type", "message", "frames"}, frames from the outermost to the innermost."""
    frames = [
        {"file": frame.filename, "line": frame.lineno, "function": frame.name, "code": frame.line or ""}
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__
    ]
    if isinstance(error, SyntaxError):
        frames.append(
            {"file": error.filename, "line": error.lineno, "function": "", "code": (error.text or "").strip()}
        )
    try:
        message = str(error)
    except BaseException:  # __str__ is the learner's too
        message = "(its message cannot be shown)"
    if isinstance(error, UnfinishedError):
        return {"type": "TypeError", "message": message, "frames": [error.frame]}
    cause = "" if error.__cause__ is None else "\n" + "".join(traceback.format_exception_only(error.__cause__)).strip()
    return {"type": type(error).__name__, "message": message[: TEXT - 400] + cause[:400], "frames": frames[-FRAMES:]}


def _file_of(owner: type) -> str:
    try:
        return inspect.getfile(owner)
    except (TypeError, OSError):
        return ""


def _is_own(value: Any, module: types.ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _spelled_out(value: Any) -> Any:
    match value:
        case {"dtype": str(name)}:
            return getattr(torch, name)
        case {"device": str(name)}:
            return torch.device(name)
    return value


def _listed(named: Iterator[tuple[str, Tensor]]) -> list[dict[str, Any]]:
    first: dict[int, str] = {}
    return [
        {
            "name": name,
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "device": tensor.device.type,
            "requires_grad": tensor.requires_grad,
            "same_as": first.setdefault(id(tensor), name),
        }
        for name, tensor in named
        if tensor is not None
    ]


def _set(block: nn.Module, values: dict[str, Tensor]) -> None:
    settable = dict(_held(block)) | dict(block.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in values.items():
            settable[name].copy_(value)


def _first_tensor(y: Any, shape: torch.Size) -> Tensor:
    """The output: of several tensors that a block may give, the first of its input's shape, or else the first."""
    found = list(itertools.islice(_tensors(y), 16))
    if not found:
        raise TypeError(f"forward must give a tensor, but it gave {type(y).__name__}")
    return next((one for one in found if one.shape == shape), found[0])


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict) and depth < 4:
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one, depth + 1)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().clone()


class _Trace(TorchDispatchMode):
    """The names of the operations that torch carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()
        self.created: set[tuple[int, ...]] = set()
        self.modules_created = 0
        self.masked = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function.name()).removeprefix("aten::")
        self.operations.add(name)
        result = function(*args, **(kwargs or {}))
        if name.partition(".")[0] in ("ones", "ones_like", "full", "full_like", "empty", "zeros", "fill_"):
            self.created.add(tuple(result.shape))
        if name.startswith("masked_fill") and args[1].dim() >= 2:
            self.masked = self.masked or bool(args[1].any())
        return result


class _Watch(TorchDispatchMode):
    """Where the learner's code changed tensors in place, and where float32 spread: one site a statement."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[dict[str, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [(one.dtype, list(one.shape)) for one in args if isinstance(one, Tensor)]
        result = function(*args, **(kwargs or {}))
        name = str(function.name()).removeprefix("aten::").partition(".")[0]
        if name.endswith("_") and given:
            self._note(name, given[0][1])
        elif isinstance(result, Tensor) and result.dtype == torch.float32:
            wide = [shape for dtype, shape in given if dtype == torch.float32 and shape]
            if wide and any(dtype in (torch.bfloat16, torch.float16) for dtype, _ in given):
                self._note(PROMOTED, wide[0])
        return result

    def _note(self, what: str, shape: list[int]) -> None:
        if len(self.sites) < MOST_SITES and (frame := _learners_frame(nearest=what == PROMOTED)) is not None:
            self.sites.append({"what": what, "shape": shape, **frame})


def _learners_frame(*, nearest: bool) -> dict[str, Any] | None:
    """The innermost statement that is neither torch's nor ours; nearest: None where torch's Python lies in between."""
    for frame in reversed(traceback.extract_stack(limit=60)):
        if frame.filename == __file__ or frame.filename.endswith(DISPATCHING):
            continue
        if not frame.filename.startswith((TORCH, "<")):
            return {"file": frame.filename, "line": frame.lineno, "function": frame.name, "code": frame.line or ""}
        if nearest:
            break
    return None


@contextlib.contextmanager
def _filled() -> Iterator[None]:
    """torch.empty gives NaN meanwhile."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class _OneDevice(TorchDispatchMode):
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


class _OtherAngles(TorchDispatchMode):
    """Random numbers where a sine or a cosine would be."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if str(function.name()).removeprefix("aten::").partition(".")[0] in ("cos", "sin", "polar", "cos_", "sin_"):
            noise = torch.rand(result.shape, generator=self.generator, dtype=torch.float64)
            result.copy_(torch.where(_is_at_zero(result), result, (noise + 0.5).to(result.dtype)))
        return result


@contextlib.contextmanager
def _traced(block: nn.Module, trace: _Trace) -> Iterator[None]:
    """Trace what the block does, and not what the line that calls it does beside it."""
    with contextlib.ExitStack() as running:

        def begin(*_: Any) -> None:
            running.enter_context(trace)
            running.enter_context(_modules_counted(trace))

        hooks = [
            block.register_forward_pre_hook(begin),
            block.register_forward_hook(lambda *_: running.close()),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextlib.contextmanager
def _modules_counted(trace: _Trace) -> Iterator[None]:
    plain = nn.Module.__init__

    def counted(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        trace.modules_created += 1
        plain(self, *args, **kwargs)

    nn.Module.__init__ = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__init__ = plain  # type: ignore[method-assign]


@contextlib.contextmanager
def _scrambled(block: nn.Module, seed: int) -> Iterator[None]:
    """Other numbers in every floating-point or complex tensor that the block's modules hold beside parameters."""
    held = [tensor for _, tensor in _held(block) if not _is_mask(tensor)]
    kept = [tensor.clone() for tensor in held]
    generator = torch.Generator().manual_seed(seed)
    for tensor in held:
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.data.copy_(torch.where(_is_at_zero(tensor), tensor, (noise + 0.5).to(tensor.dtype)))
    try:
        yield
    finally:
        for tensor, old in zip(held, kept, strict=True):
            tensor.data.copy_(old)


def _is_at_zero(tensor: Tensor) -> Tensor:
    """Where it is the sine or the cosine of position 0: who turns everything by that turns nothing."""
    return (tensor == 0) | (tensor == 1)


def _is_mask(tensor: Tensor) -> bool:
    """Whether it holds two numbers at most, as masks do, and what is multiplied by: no table of angles."""
    return not tensor.is_complex() and tensor.unique().numel() <= 2


_MODULE_STATE = frozenset(vars(nn.Module()))


def _held(block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The numbers that modules hold beside their parameters: buffers, plain attributes, and what dictionaries hold."""
    for path, module in block.named_modules():
        for name, value in [*vars(module).items(), *module._buffers.items()]:
            inside = value.values() if isinstance(value, dict) and name not in _MODULE_STATE else [value]
            for one in inside:
                for tensor in one if isinstance(one, tuple | list) else [one]:
                    is_number = isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex())
                    if is_number and not isinstance(tensor, nn.Parameter) and tensor.numel():
                        yield f"{path}.{name}" if path else name, tensor
