"""For mypy, in tests: what is unknown to mypy is Any, where it would assume the worst.

An attribute of a module that no class declares: torch declares them all `Tensor | Module`, so that in
`model.layers[0].attn.q_proj.weight` every dot would be an error.
The arguments of a call with `*some` or `**options`: mypy assumes that a list fills all parameters, and that a dict has
all names. Calls that spell out their arguments are checked.
"""

from collections.abc import Callable

from mypy.nodes import ARG_STAR, ARG_STAR2, CallExpr
from mypy.plugin import AttributeContext, FunctionSigContext, MethodSigContext, Plugin
from mypy.types import AnyType, CallableType, Instance, Type, TypeOfAny, UnionType, get_proper_type

UNDECLARED = {"torch._tensor.Tensor", "torch.nn.modules.module.Module"}
CALLED = {"prenorm", "tests", "torch", "transformers"}  # not zip(*rows), whose type is that of its arguments
ANY = AnyType(TypeOfAny.explicit)

AnySigContext = FunctionSigContext | MethodSigContext


class Unknown(Plugin):
    """Takes part where mypy has found the type of an attribute or of what is called."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type]:
        """The same for all names: the type says which ones are meant."""
        return attribute

    def get_function_signature_hook(self, fullname: str) -> Callable[[FunctionSigContext], CallableType] | None:
        """For functions and classes."""
        return signature if fullname.partition(".")[0] in CALLED else None

    def get_method_signature_hook(self, fullname: str) -> Callable[[MethodSigContext], CallableType] | None:
        """For methods."""
        return signature if fullname.partition(".")[0] in CALLED else None


def attribute(context: AttributeContext) -> Type:
    """Any in the place of what `nn.Module.__getattr__` declares."""
    found = get_proper_type(context.default_attr_type)
    if not is_test(context) or not isinstance(found, UnionType):
        return context.default_attr_type
    items = [get_proper_type(one) for one in found.items]
    names = {one.type.fullname for one in items if isinstance(one, Instance)}
    return ANY if names == UNDECLARED else context.default_attr_type


def signature(context: AnySigContext) -> CallableType:
    """Any arguments for a call that unpacks some."""
    call, known = context.context, context.default_signature
    if is_test(context) and isinstance(call, CallExpr) and {ARG_STAR, ARG_STAR2} & {*call.arg_kinds}:
        return known.copy_modified([ANY, ANY], [ARG_STAR, ARG_STAR2], [None, None])
    return known


def is_test(context: AttributeContext | AnySigContext) -> bool:
    """Whether the file is one of the tests: benchmarks and examples are taken as the package is."""
    return "tests" in context.api.path.split("/")


def plugin(version: str) -> type[Plugin]:
    """What mypy asks a plugin's file for."""
    return Unknown
