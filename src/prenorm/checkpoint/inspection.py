"""What a folder holds, without reading a tensor, and everything for which opening it would be refused."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..config import EncoderDecoderConfig, ModelConfig
from ..errors import CheckpointError, PrenormError
from ..ops.quantized import KINDS, packed_shapes
from . import encoder_decoder
from .files import file_in, json_text, read_json
from .fit import LAYER, check_fit, check_layers, check_tensors
from .generation_config import GENERATION_CONFIG, read_generation_config, settings_from_hugging_face
from .header import DTYPES
from .layouts import ENCODER_DECODER, LAYOUTS, SIZES, config_from_hugging_face, eos_from_hugging_face, own_eos
from .names import matrices_of, parameters_of
from .quantized import KEY, kind_in
from .room import check_memory
from .together import CONFIG, SAVE_ID, Found, Weights, opened
from .tokenizer_files import read_tokenizer_files, tokenizer_files_in
from .writing import naming_among, naming_of

Config = ModelConfig | EncoderDecoderConfig
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SHORT_CONTEXT = 4096  # what its cache takes is said beside that of the model's own


def inspect_folder(folder: Path) -> dict[str, Any]:
    """The sheet of a folder: what it says of its model, its tensors, the memory they take, and the reasons, in its own
    words, for which `from_pretrained` ("refused") and text ("no_text") would be refused; [] where there are none.

    Raises CheckpointError if it is not a folder.
    """
    if not folder.is_dir():
        raise CheckpointError(f"FOLDER must be a folder that holds a model, but there is no folder {folder}.")
    refused: list[str] = []
    no_text: list[str] = []
    fields: dict[str, Any] = {}
    kind = config = weights = None
    with _noting(refused), opened(folder) as (_, read, _):
        fields = read
    if not fields:  # files that are not as they were saved: what else would be refused, is said all the same
        with suppress(CheckpointError):
            fields = read_json(file_in(folder, CONFIG))
    own = {key: value for key, value in fields.items() if key not in (KEY, SAVE_ID)}
    if fields:
        with _noting(refused):
            kind = kind_in(fields, str(folder / CONFIG))
        with _noting(refused):
            config = _config(own, folder)
        with _noting(refused):
            _check_generation(folder, own, config)
        with _noting(refused):
            read_tokenizer_files(folder)
    with _noting(refused):
        weights = Weights(folder, fields)
    if config is not None and weights is not None:
        with _noting(refused):
            _check_tensors(config, weights.found, own, kind, folder)
    with _noting(no_text):
        _check_text(folder)
    found = {} if weights is None else weights.found
    return {
        "folder": str(folder),
        **_about(own, kind, config),
        **sizes(config, found),
        "files": {} if weights is None else weights.files(),
        "tokenizer_files": tokenizer_files_in(folder),
        "refused": refused,
        "no_text": no_text,
    }


def sizes(config: Config | None, found: Found) -> dict[str, Any]:
    """Every tensor, how many numbers they are, and bytes of memory: as stored, and of the model in each dtype."""
    return {
        "parameters": _count(config, found),
        "stored_bytes": _bytes_of(found),
        "memory": _memory(config, found),
        "tensors": [{"name": name, "dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in found.items()],
    }


def parameter_table(tensors: list[dict[str, Any]]) -> list[tuple[str, str, str, int, int]]:
    """The tensors of a sheet, those of all layers in one row: name, dtype, shape, how many, numbers in all."""
    rows: dict[tuple[str, str, str], tuple[int, int]] = {}
    for tensor in tensors:
        key = LAYER.sub("*", tensor["name"], count=1), tensor["dtype"], " x ".join(map(str, tensor["shape"]))
        count, numbers = rows.get(key, (0, 0))
        rows[key] = count + 1, numbers + math.prod(tensor["shape"])
    return [(*key, *value) for key, value in rows.items()]


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except PrenormError as error:
        problems.append(str(error))


def _config(own: Mapping[str, Any], folder: Path) -> Config:
    source = str(folder / CONFIG)
    if own.get("model_type") == ENCODER_DECODER:
        return encoder_decoder.read_config(own, source)[0]
    return config_from_hugging_face(own, source=source)[0]


def _check_generation(folder: Path, own: Mapping[str, Any], config: Config | None) -> None:
    """Raise CheckpointError for what opening a model reads of generation_config.json: the ids that end a text."""
    generation = read_generation_config(folder) or {}
    if isinstance(config, ModelConfig):
        ids = own_eos(generation.get("eos_token_id"), LAYOUTS[own["model_type"]], config.vocab_size)
        eos_from_hugging_face(ids, config.vocab_size, source=str(folder / GENERATION_CONFIG))


def _check_tensors(config: Config, found: Found, own: Mapping[str, Any], kind: str | None, folder: Path) -> None:
    if isinstance(config, EncoderDecoderConfig):
        check_layers(config.num_layers + config.num_decoder_layers, found, str(folder))
        names = check_tensors(dict(encoder_decoder.parameters_of(config)), found, str(folder))
    else:
        layout = LAYOUTS[own["model_type"]]
        naming = naming_of(layout, kind, naming_among(layout, found, tied=config.tie_embeddings))
        names = check_fit(config, found, hugging_face=True, source=str(folder), kind=kind, naming=naming)
    check_memory(_bytes_of({name: found[name] for name in names}), None, str(folder))


def _check_text(folder: Path) -> None:
    """Raise CheckpointError where `prenorm generate` would refuse what it needs beside the model."""
    from .tokenizer import open_tokenizer  # loads tokenizers, which a model does without

    open_tokenizer(folder)
    settings_from_hugging_face(read_generation_config(folder) or {}, str(folder / GENERATION_CONFIG))


def _about(own: Mapping[str, Any], kind: str | None, config: Config | None) -> dict[str, Any]:
    """What the config says: in our words where it is understood, in the file's where it is not."""
    model_type, named = own.get("model_type"), own.get("architectures")
    return {
        "model_type": None if model_type is None else _text(model_type),
        "architecture": _text(named[0]) if isinstance(named, list) and named else None,
        "quantized": kind,
        "understood": config is not None,
        "context": config.max_seq_len if config else _text(own.get("max_position_embeddings")),
        "config": config.to_dict() if config else {key: _text(own[key]) for key in SIZES if key in own},
    }


def _text(value: Any) -> Any:
    """What a file says where it was not understood: short, and printable."""
    return value if value is None or (type(value) is int and value < 2**63) else json_text(value).strip('"')


def _count(config: Config | None, found: Found) -> int:
    """How many numbers the model has: those of the config, a tied head once; without one those that are stored."""
    if isinstance(config, ModelConfig) and config.num_layers <= max(300, len(found)):
        return sum(math.prod(parameter.shape) for parameter in parameters_of(config))
    return sum(math.prod(shape) for dtype, shape in found.values() if dtype in ("F64", "F32", "F16", "BF16"))


def _bytes_of(found: Found) -> int:
    return sum(math.prod(shape) * DTYPES[dtype].itemsize for dtype, shape in found.values() if dtype in DTYPES)


def _memory(config: Config | None, found: Found) -> dict[str, dict[str, int]]:
    """Bytes in each dtype: of the weights, and of the keys and values of one text that is as long as the context."""
    numbers = _count(config, found)
    memory = {dtype: {"weights": numbers * size} for dtype, size in BYTES.items()}
    if not isinstance(config, ModelConfig) or config.num_layers > max(300, len(found)):
        return memory
    for dtype, size in BYTES.items():
        for context in sorted({min(SHORT_CONTEXT, config.max_seq_len), config.max_seq_len}):
            memory[dtype][f"cache_of_{context}_tokens"] = _cached(config, context) * size
    untied = dataclasses.replace(config, tie_embeddings=False)  # a tied head becomes a matrix of its own
    shapes = [shape for _, _, shape in matrices_of(untied)]
    others = sum(math.prod(parameter.shape) for parameter in parameters_of(untied)) - sum(map(math.prod, shapes))
    for kind in KINDS:  # scales are in bfloat16, like everything that is not a matrix
        packed = [packed_shapes(shape, kind) for shape in shapes]
        memory[kind] = {"weights": sum(math.prod(one) + 2 * math.prod(two) for one, two in packed) + 2 * others}
    return memory


def _cached(config: ModelConfig, context: int) -> int:
    """Numbers in the cache of one row. A layer with a window keeps so many places."""
    windows = () if config.family is None else config.family.windows
    places = [window or config.window or context for window in windows or [0] * config.num_layers]
    return sum(min(context, place) for place in places) * 2 * config.num_kv_heads * config.head_dim
