"""What a model_type's config.json and tensor names mean, in one record; readers of keys that families share."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ...config import ModelConfig
from ...errors import ConfigError
from ...family import Activation
from ...validation import check_flag, check_number
from ..files import IN_THE_FILE, json_text
from ..names import CLASSIC, Naming
from ..rope import PLAIN, Dialect, as_float

Known = Mapping[str, Any]  # the keys of a config.json, and what the config class assumes for those that are absent

# transformers' names of activations that are ours. gelu_new and gelu_fast are the same formula, written out.
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {
        "silu": "silu",
        "swish": "silu",
        "gelu": "gelu",
        "gelu_python": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "gelu_python_tanh": "gelu_tanh",
        "gelu_new": "gelu_tanh",
        "gelu_fast": "gelu_tanh",
        "quick_gelu": "quick_gelu",
        "relu": "relu",
        "relu2": "relu_squared",
        "sigmoid": "sigmoid",
        "tanh": "tanh",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """One model_type of transformers.

    keys: those that affect the numbers, besides the sizes that every file has, each with the default of the config
    class. never_null: keys and sizes for which the class refuses a null. null_is_default: keys for which it takes a
    null as the default. harmless: further keys, which have no effect at these values.
    read: from the keys, defaults filled in, to fields of ModelConfig and Family. Raises ConfigError.
    own: its own names of the keys in `layouts.SIZES`. rope: None if positions are learned.
    other_namings: the tensor names that other programs write. write: the keys that describe a config that was not read
    from a folder; they are used only if reading them gives the same config.
    """

    architecture: str
    keys: Mapping[str, Any]
    read: Callable[[Known], dict[str, Any]]
    never_null: tuple[str, ...] = ()
    null_is_default: tuple[str, ...] = ()
    harmless: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    eps_key: str | None = "rms_norm_eps"  # None: its class has a constant, which `read` gives
    rope: Dialect | None = PLAIN
    read_rope: Callable[[Known, int], dict[str, Any]] | None = None  # if it has its own keys for rotary embedding
    foreign_in_rope: Callable[[Mapping[str, Any]], Iterator[str]] | None = None
    naming: Naming = CLASSIC
    other_namings: tuple[Naming, ...] = ()
    interleaved: bool = False  # whether its pairs are features (2i, 2i+1)
    own: Mapping[str, str] = field(default_factory=dict)
    write: Callable[[ModelConfig], dict[str, Any]] | None = None

    @property
    def namings(self) -> tuple[Naming, ...]:
        """The names that transformers writes and those of other programs, and the same of a model without its head.

        Then all of these once more, for a tied embedding that is stored as the head.
        """
        named = (self.naming, *self.other_namings)
        named = (*named, *(naming.without_prefix for naming in named))
        return (*named, *(naming.embedding_as_head for naming in named))


def activation_of(known: Known, key: str = "hidden_act") -> Activation:
    """The activation that a key names. Raises ConfigError for one that is not supported."""
    name = known[key]
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ConfigError(f"{key} must be one of {', '.join(ACTIVATIONS)}, not {json_text(name)}.")
    return ACTIVATIONS[name]


def check_same_activation(known: Known, key: str, activation: Activation) -> None:
    """Raise ConfigError if `key`, which the class does not read, names another activation."""
    if known.get(key) is not None and activation_of(known, key) != activation:
        raise ConfigError(f"{key} is {json_text(known[key])}, which is not what the model runs; leave {key} out.")


def flag(known: Known, key: str) -> bool:
    """A boolean; null is False. Raises ConfigError for anything else."""
    value = known[key]
    if value is None:
        return False
    check_flag(key, value, spelling=IN_THE_FILE)
    return bool(value)


def number(known: Known, key: str) -> float:
    """A number above 0. Raises ConfigError."""
    value = as_float(known[key])
    check_number(key, value, above=0.0, spelling=IN_THE_FILE)
    return float(value)


def number_or_none(known: Known, key: str) -> float | None:
    """A number above 0, or null."""
    return None if known[key] is None else number(known, key)


def biases(known: Known, key: str = "attention_bias") -> dict[str, Any]:
    """The biases of all four projections of attention, from one key."""
    check_flag(key, known[key], spelling=IN_THE_FILE)
    return {"qkv_bias": known[key], "o_bias": known[key]}


def name_of_activation(activation: Activation) -> str:
    """transformers' name of an activation of ours."""
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def check_head_dim(known: Known, width: str = "hidden_size", heads: str = "num_attention_heads") -> None:
    """Raise ConfigError for a head_dim other than the one that the class computes itself."""
    if known["head_dim"] is not None and known["head_dim"] * known[heads] != known[width]:
        raise ConfigError(f"head_dim must be {width} / {heads} in this family; leave it out.")


def check_causal(known: Known) -> None:
    """Raise ConfigError for a model whose tokens attend to later ones."""
    if known.get("use_bidirectional_attention"):
        raise ConfigError("use_bidirectional_attention must be false or absent: this model is causal.")
