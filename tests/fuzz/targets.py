"""What is fuzzed: a folder of files that bytes have changed is opened, and only our own errors may come of it."""

import functools
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prenorm import ModelConfig, TransformerLM
from prenorm.checkpoint.bookkeeping import HARMLESS_VALUES, NO_INFLUENCE
from prenorm.checkpoint.generation_config import read_generation_config, settings_from_hugging_face
from prenorm.checkpoint.layouts import LAYOUTS, config_from_hugging_face
from prenorm.checkpoint.manifest import MANIFEST
from prenorm.checkpoint.names import parameters_of
from prenorm.checkpoint.quantized import KEY
from prenorm.checkpoint.stored import stored_shapes
from prenorm.checkpoint.tokenizer import open_tokenizer
from prenorm.errors import PrenormError
from prenorm.generation.text import TextGenerator

from ..checkpoint.hostile.folders import INDEX, SHAPE, Folder, Hole, Link, file_of, good, shard_files, tokenizer
from .choices import Choices
from .manifests import fuzz_manifest
from .opening import encoded, open_folder, refusal, said_in

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope", "su", "proportional")
ROPE = {
    "rope_type": "yarn",
    "factor": 4.0,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "short_factor": [1.0, 1.0],
    "long_factor": [1.0, 2.0],
    "attention_factor": 1.5,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.7,
    "mscale_all_dim": 0.4,
    "truncate": False,
    "partial_rotary_factor": 0.5,
}
ORIGINAL = {"factor": 4.0, "original_max_position_embeddings": 16}
LENGTHS: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in ROPE_TYPES},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": ORIGINAL,
    "llama3": {**ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {**ORIGINAL, "short_factor": [1.0, 1.0], "long_factor": [1.0, 2.0]},
}
NEAR: list[Any] = [*ROPE_TYPES, ROPE, "full_attention", "sliding_attention", ["sliding_attention", "full_attention"]]
NEAR += ["prenorm_encoder_decoder", "mixtral", {"AutoConfig": "configuration_llama.LlamaConfig"}, [61, 2], 128001]
NEAR += ["silu", "gelu_pytorch_tanh", "relu2", [1, 0], {"full_attention": {}, "sliding_attention": {}}]


def fuzz_header(data: bytes, folder: Path) -> None:
    """The header of the weights, of floats or of whole numbers, and the bytes around it."""
    if (said := said_in(data)) is not None:
        return open_folder(_with_header(said), folder)
    choices = Choices(data)
    kind = choices.one((None, "int8", "int4"))
    files = good() if kind is None else quantized(kind)
    whole = files["model.safetensors"]
    length = int.from_bytes(whole[:8], "little")
    fields, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    how = choices.below(8)
    near = [*fields, "F16", "BF16", "F64", "I32", "F8_E4M3", "__metadata__", {"format": "pt"}, [0, len(body)]]
    if how == 0:
        files["model.safetensors"] = choices.rest()
    elif how == 1:
        files["model.safetensors"] = file_of(choices.rest(), body)
    else:
        while choices:
            fields = choices.changed(fields, near)
        body = {2: b"\x00\x00\x80\x7e" * (len(body) // 4), 7: body[:-4]}.get(how, body)  # 2: 8.5e37, beyond float16
        files["model.safetensors"] = file_of(encoded(fields), body)
    open_folder(files, folder)


def fuzz_config(data: bytes, folder: Path) -> None:
    """The config.json of any family; where it is understood, weights that fit it are opened too."""
    if (said := said_in(data)) is not None:
        return _open_config(*_with_config(said), folder)
    choices = Choices(data)
    model_type = choices.one(sorted(LAYOUTS))
    layout, fields = LAYOUTS[model_type], _usual_config(model_type)
    known = [*fields, *HARMLESS_VALUES, *layout.harmless, "rope_theta", "rope_scaling", "rope_parameters", KEY]
    known += ["num_local_experts", "vision_config", "use_bidirectional_attention", "final_logit_softcapping"]
    known += [
        *sorted(NO_INFLUENCE)[:5],
        "tie_word_embeddings",
        "prenorm_dropout",
        "partial_rotary_factor",
        "layer_types",
    ]
    for _ in range(40):
        if not choices:
            break
        key = choices.one(known)
        how = choices.below(6)
        if how == 0:
            fields.pop(key, None)
        elif how == 2 and choices.below(2):  # both objects of rotary embedding, alike or nearly
            kind = choices.one(ROPE_TYPES)
            fields["rope_scaling"] = {**ROPE, choices.one(("type", "rope_type")): kind}
            needed = choices.one((ROPE, {"rope_type": kind, "factor": 4.0}, {"rope_type": kind, **LENGTHS[kind]}))
            fields["rope_parameters"] = {**needed, "rope_type": kind}
            for each in ("rope_scaling", "rope_parameters"):
                if choices.below(2):
                    own = {name: ROPE[name] for name in ("rope_theta", *LENGTHS[kind]) if name in ROPE}
                    fields[each] = {"rope_type": kind, **own}
                if choices.below(4) == 0:
                    fields[each] = choices.changed(fields[each], [*ROPE, *NEAR])
                elif choices.below(4) == 0:
                    fields[each] = choices.one((None, {}, []))
        elif how == 1 or key.startswith("rope_"):
            kind = choices.one(ROPE_TYPES)
            scaling = {"rope_type": kind, "factor": 4.0} if choices.below(2) else {**ROPE, "rope_type": kind}
            fields[key] = choices.changed(scaling, [*ROPE, *NEAR]) if choices.below(3) else scaling
        elif how in (2, 3):
            fields[key] = choices.one(_usual(key))
        else:
            fields[key] = choices.changed(fields.get(key), NEAR)
    _open_config(fields, {}, folder)


def _usual_config(model_type: str) -> dict[str, Any]:
    """The config.json of a family, with the defaults of its class and the sizes of the good folder."""
    layout = LAYOUTS[model_type]
    sizes = {layout.own.get(key, key): size for key, size in SHAPE.items()}
    keys = {key: value for key, value in layout.keys.items() if value is not None or key not in layout.never_null}
    fields = {"model_type": model_type, **sizes, "max_position_embeddings": 32, **keys}
    return fields | {"num_key_value_heads": 1, "head_dim": 4} | sizes


def _with_config(said: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A family's config.json with these changes, those under "-" left out; and tensors under "+" with their shapes."""
    model_type = said.get("model_type")
    known = isinstance(model_type, str) and model_type in LAYOUTS
    fields = {**(_usual_config(model_type) if known else {}), **said}
    further, left_out = fields.pop("+", {}), fields.pop("-", [])
    for key in left_out if isinstance(left_out, list) else []:
        fields.pop(str(key), None)
    return fields, further if isinstance(further, dict) else {}


def _open_config(fields: dict[str, Any], further: dict[str, Any], folder: Path) -> None:
    """Open a config.json, with weights that fit where it is understood, and with further tensors."""
    files = good() | {"config.json": encoded(fields)}
    try:
        config, _ = config_from_hugging_face(json.loads(files["config.json"]))
        naming = LAYOUTS[fields["model_type"]].naming
        size = config.num_layers * (config.d_model * (config.d_ff + 4 * config.num_heads * config.head_dim))
        if size + 2 * config.vocab_size * config.d_model < 50_000 and config.num_layers < 50:
            files["model.safetensors"] = weights(stored_shapes(parameters_of(config, naming=naming)), further)
    except (PrenormError, ValueError, TypeError):  # ValueError: json's; TypeError: of shapes that are none
        pass
    open_folder(files, folder)


def _with_header(said: dict[str, Any]) -> dict[str, Any]:
    """A folder with these entries in the header of its weights, of this kind and filled with these bytes."""
    kind, fill = said.pop("kind", None), said.pop("fill", None)
    files = quantized(kind) if kind in ("int8", "int4") else good()
    length = int.from_bytes(files["model.safetensors"][:8], "little")
    fields, body = json.loads(files["model.safetensors"][8 : 8 + length]), files["model.safetensors"][8 + length :]
    for name, entry in said.items():
        match entry:
            case {"dtype": dtype, "shape": shape, "bytes": int(size)}:  # behind the others
                fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + size]}
                body += b"\x00" * min(size, 1000)
            case _:
                fields[name] = entry
    if isinstance(fill, str) and fill:
        body = (fill.encode("latin-1", "replace") * len(body))[: len(body)]
    return {**files, "model.safetensors": file_of(encoded(fields), body)}


def _usual(key: str) -> tuple[Any, ...]:
    """What files have under a key, so that switches meet each other."""
    if "rope_s" in key or "rope_p" in key:
        return tuple({"rope_type": kind, **LENGTHS[kind]} for kind in ROPE_TYPES)
    if "window" in key and not key.startswith("use_"):
        return (4, 3, None)
    if "layer_types" in key:
        return (None, *([one, two] for one in KINDS for two in KINDS))
    if "act" in key:
        return ("silu", "gelu", "gelu_pytorch_tanh", None)
    return (True, False, None, 1, 2, 0.5)


KINDS = ("full_attention", "sliding_attention")


def fuzz_index(data: bytes, folder: Path) -> None:
    """The index of a sharded folder, its shards, and generation_config.json."""
    if (said := said_in(data)) is not None:
        return _open_files(said, folder)
    choices, files = Choices(data), shard_files()
    index, settings = json.loads(files[INDEX]), {"eos_token_id": [1, 2], "do_sample": True, "temperature": 0.6}
    near = [*files, "../secret.safetensors", "model-00003-of-00002.safetensors", *index["weight_map"], "weight_map"]
    near += ["num_beams", "top_k", "top_p", "min_p", "stop_strings", "max_length", "repetition_penalty", ["a"]]
    while choices:
        match choices.below(7):
            case 6 if choices.below(3) == 0:
                for name in choices.one(((INDEX,), (INDEX, "config.json"))):
                    files.pop(name, None)
                index = None
                files[choices.one(OTHERS)] = choices.one(PLACES)
            case 6:
                name = choices.one(sorted({*files, *OTHERS}))
                files[name] = choices.one(PLACES)
                index = None if name == INDEX else index
            case 0:
                settings = choices.changed(settings, near)
            case 1 if len(files) > 1:
                files.pop(choices.one(sorted(files)))
            case 2:
                name = choices.one(sorted(files))
                if isinstance(files[name], bytes):
                    files[name] = files[name][: choices.below(len(files[name]))]
            case 3:
                files[INDEX] = choices.rest()
                index = None
            case _:
                index = choices.changed(index, near)
    if index is not None:
        files[INDEX] = encoded(index)
    open_folder({**files, "generation_config.json": encoded(settings)}, folder)
    refusal(lambda: settings_from_hugging_face(read_generation_config(folder) or {}, "generation_config.json"))


def _open_files(said: dict[str, Any], folder: Path) -> None:
    """The sharded folder with these files: null for none, a text, or the number of a place."""
    files = shard_files()
    for name, content in said.items():
        match content:
            case None:
                files.pop(name, None)
            case str():
                files[name] = content.encode("latin-1", "replace")
            case int():
                files[name] = PLACES[content % len(PLACES)]
    try:
        open_folder(files, folder)
    except (OSError, ValueError):  # a name that no file may have
        if (folder / "config.json").exists():
            raise


# What may stand in a file's place, and names of further files.
PLACES: tuple[Any, ...] = (
    Link("../secret"),
    Link("/etc/passwd"),
    Link("config.json"),
    Link("loop"),
    Link("loop\x01"),
    Folder(),
    Hole(b"{", 2**24),
    Hole(b"", 2**41),
    b"\xef\xbb\xbf{}",
    b"\x80\x04x",
    b"[[[]]]",
    b"[" * 200_000,
    b'{"a": ' * 60 + b"1" + b"}" * 60,
    b'{"a": [1, [2, 1e999]]}',
    b'{"a": 1, "a": 2}',
    json.dumps({"weight_map": {f"t{i}": f"s{i}.safetensors" for i in range(3000)}}).encode(),
    json.dumps({"weight_map": dict.fromkeys(map(str, range(20_000)), "model.safetensors")}).encode(),
    file_of({f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(11_000)}, b""),
)
OTHERS = (
    "loop",
    "pytorch_model.bin",
    "model.safetensors",
    "tokenizer.model",
    "additional_chat_templates",
    "merges.txt",
)


def fuzz_tokenizer(data: bytes, folder: Path) -> None:
    """The tokenizer.json, and a text that is taken to ids and back."""
    choices = Choices(data)
    fields = {**tokenizer(), **choices.one(PARTS)}
    near = [*PARTS, *(value for part in PARTS for value in part.values()), "unk_token", "byte_fallback", "Regex"]
    if choices.below(16) == 0:
        content = choices.rest()
    else:
        while choices:
            fields = choices.changed(fields, near)
        content = encoded(fields)
    _generate(content, folder)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "pattern": {"Regex": "\\p{N}"}, "behavior": "Isolated", "invert": False}
TOKEN = {
    "id": 3,
    "content": "d",
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": True,
}
PARTS: tuple[dict[str, Any], ...] = (
    {},
    {"pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}},
    {"added_tokens": [TOKEN]},
    {"model": {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"}},
    {"model": {"type": "WordPiece", "vocab": {"b": 0}, "unk_token": "?", "max_input_chars_per_word": 9}},
    {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["?", 0.0], ["a", -1.0]], "byte_fallback": False}},
    {"normalizer": {"type": "NFKC"}, "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}},
    {"truncation": {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}},
)

TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "header": fuzz_header,
    "config": fuzz_config,
    "index": fuzz_index,
    "manifest": fuzz_manifest,
    "tokenizer": fuzz_tokenizer,
}


@functools.cache
def scratch() -> Path:
    """A folder for the files, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="prenorm-fuzz-", dir=memory if memory.is_dir() else None))


@functools.cache
def _model() -> TransformerLM:
    return TransformerLM(ModelConfig(20, 4, 1, 1, max_seq_len=8)).eval()


def _generate(content: bytes, folder: Path) -> None:
    """Open a tokenizer, and generate text with it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(content)
    options = {"max_new_tokens": 2, "temperature": 0}
    refusal(lambda: TextGenerator(_model(), open_tokenizer(folder)).generate(["ab 1\n"], **options))


def weights(shapes: dict[str, tuple[int, ...]], further: dict[str, Any]) -> bytes:
    """Weights of these shapes, zeros, and further ones that are not."""
    fields, ends = {}, [0]
    for name, shape in {**shapes, **further}.items():
        ends.append(ends[-1] + 4 * math.prod(shape))
        fields[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": ends[-2:]}
    return file_of(fields, b"\x00" * ends[len(shapes)] + b"?" * (ends[-1] - ends[len(shapes)]))


@functools.cache
def _quantized(kind: str) -> dict[str, bytes]:
    folder = Path(tempfile.mkdtemp())
    try:
        torch.manual_seed(0)
        TransformerLM(ModelConfig(20, 8, 1, 2, d_ff=12, max_seq_len=32)).quantize(kind).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    finally:
        shutil.rmtree(folder)


def quantized(kind: str) -> dict[str, Any]:
    """A folder of whole numbers."""
    return good() | _quantized(kind)
