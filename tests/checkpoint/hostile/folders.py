"""Folders that somebody with bad intentions, a broken tool or a bad disk could leave: each must be refused.

A folder is its files by name: bytes, a function that gives them, or one of the classes below. Every one of them is the
good folder with one change.
"""

import json
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPE = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    **SHAPE,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
# Outside the folder; a test sees whether they are opened.
SECRET = "secret.safetensors"


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Hole:
    """Some bytes, and a hole up to a size: a file that says to be large and takes no disk."""

    start: bytes
    size: int


class Pipe:
    """A named pipe, at which a reader would wait for ever."""


class Folder:
    """A folder in which there is nothing but a folder."""


Files = dict[str, Any]


def tensors() -> dict[str, tuple[int, ...]]:
    """The tensors of the good folder."""
    vocab, width, inner = 20, 8, 12
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for layer in range(2):
        for name, shape in {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (width // 2, width),
            "self_attn.v_proj": (width // 2, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return {**shapes, "model.norm.weight": (width,), "lm_head.weight": (vocab, width)}


def header() -> dict[str, Any]:
    """What the good file says of itself."""
    fields, end = {}, 0
    for name, shape in tensors().items():
        begin, end = end, end + 4 * math.prod(shape)
        fields[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}
    return fields


DATA = b"\x00\x00\x80\x3f" * sum(map(math.prod, tensors().values()))  # ones
SIZE = len(DATA)


def file_of(fields: Any, data: bytes = DATA) -> bytes:
    """A safetensors file with this header, or with this text in its place."""
    encoded = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def shard_files() -> Files:
    """The good folder in two shards."""
    groups = {"model-00001-of-00002.safetensors": [], "model-00002-of-00002.safetensors": []}
    for i, name in enumerate(tensors()):
        groups[sorted(groups)[i % 2]].append(name)
    files = {name: content for name, content in good().items() if name != "model.safetensors"}
    for shard, names in groups.items():
        fields, end = {}, 0
        for name in names:
            begin, end = end, end + 4 * math.prod(tensors()[name])
            fields[name] = {"dtype": "F32", "shape": list(tensors()[name]), "data_offsets": [begin, end]}
        files[shard] = file_of(fields, b"\x00" * end)
    weight_map = {name: shard for shard, names in groups.items() for name in names}
    files[INDEX] = json.dumps({"metadata": {"total_size": SIZE}, "weight_map": weight_map}).encode()
    return files


INDEX = "model.safetensors.index.json"


def good() -> Files:
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": file_of(header()),
        "tokenizer.json": json.dumps(tokenizer()).encode(),
        "generation_config.json": b'{"eos_token_id": 2}',
    }


def tokenizer() -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {chr(97 + i): i for i in range(20)}, "merges": []},
    }


def hostile() -> dict[str, Files]:
    """Every hostile folder, by what is wrong with it."""
    folders: dict[str, Files] = {}
    for kind in (_headers, _configs, _indexes, _places, _generation_configs, _tokenizers):
        for name, files in kind():
            label = f"{kind.__name__[1:]}: {name}"
            assert label not in folders, label
            folders[label] = files
    return folders


def write(files: Files, folder: Path) -> None:
    """Put the files on the disk."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match content:
            case bytes():
                path.write_bytes(content)
            case _ if callable(content):  # large ones
                path.write_bytes(content())
            case Link(target):
                path.symlink_to(target)
            case Hole(start, size):
                path.write_bytes(start)
                os.truncate(path, size)
            case Pipe():
                os.mkfifo(path)
            case Folder():
                path.mkdir()


def _with(**files: Any) -> Files:
    """The good folder, other in these files (underscores for dots); None leaves one out."""
    changed = {name.replace("__", "."): content for name, content in files.items()}
    return {name: content for name, content in (good() | changed).items() if content is not None}


def _weights(content: Any) -> Files:
    return _with(model__safetensors=content)


def _config(fields: Any) -> Files:
    return _with(config__json=fields if isinstance(fields, bytes) or callable(fields) else json.dumps(fields).encode())


def _headers() -> Iterator[tuple[str, Files]]:
    fields = header()
    norm = "model.norm.weight"
    entry = fields[norm]
    begin, end = entry["data_offsets"]

    def other(**changes: Any) -> Files:
        return _weights(file_of({**fields, norm: {**entry, **changes}}))

    whole = file_of(fields)
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        yield f"cut to {length} bytes", _weights(whole[:length])
    for more in (1, 8, 4096):
        yield f"{more} bytes more", _weights(whole + b"\x00" * more)
    for length in (10**7, 10**8, 2**31, 2**32, 2**62, 2**63, 2**64 - 1):
        yield f"a header of {length} bytes", _weights(struct.pack("<Q", length) + b"{}")
        yield f"a header of {length} bytes in a hole", _weights(Hole(struct.pack("<Q", length) + b"{}", 2**33))
    for magic in (
        b"PK\x03\x04",
        b"\x80\x02}q\x00.",
        b"\x80\x04\x95",
        b"GGUF\x03\x00\x00\x00",
        b"\x89HDF\r\n\x1a\n",
        b"\x1f\x8b",
    ):
        yield f"another format, {magic!r}", _weights(magic + b"\x00" * 500)
    for text in (
        b"",
        b"[]",
        b"3",
        b"null",
        b'"a"',
        b"{",
        b"{}x",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b"{'a': 1}",
        b"NaN",
    ):
        yield f"the header {text!r}", _weights(file_of(text))
    yield "a header of 40 MB", _weights(lambda: file_of(b" " * 40_000_000))
    yield "a header of 9 MB of spaces", _weights(lambda: file_of(b" " * 9_000_000))
    yield "a deep header", _weights(file_of(b'{"a":' * 900 + b"1" + b"}" * 900))
    yield "a very deep header", _weights(lambda: file_of(b"[" * 1_000_000))
    yield "lists without end", _weights(lambda: file_of(b'{"a": [' + b",".join([b"[]"] * 2_000_000) + b"]}"))
    yield "objects without end", _weights(lambda: file_of(b'{"a": [' + b",".join([b"{}"] * 2_000_000) + b"]}"))
    yield "an integer of a million digits", _weights(file_of(b'{"a": ' + b"9" * 10**6 + b"}"))
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [SIZE, SIZE]}
    yield "100,000 empty tensors", _weights(lambda: file_of({**fields, **{f"t{i}": empty for i in range(100_000)}}))
    yield "9,000 empty tensors", _weights(lambda: file_of({**fields, **{f"t{i}": empty for i in range(9_000)}}))
    yield "a name of 5 MB", _weights(lambda: file_of({**fields, "x" * 5_000_000: empty}))
    yield "a name with escapes", _weights(file_of({**fields, "\x1b[31m\n\u202e\ud800": empty}))
    yield "metadata that is a list", _weights(file_of({**fields, "__metadata__": []}))
    yield "metadata of numbers", _weights(file_of({**fields, "__metadata__": {"a": 1}}))
    twice = json.dumps(fields)[:-1] + f', "{norm}": {json.dumps(entry)}}}'
    yield "a tensor twice", _weights(file_of(twice.encode()))
    yield (
        "a key of a tensor twice",
        _weights(file_of(json.dumps(fields).replace('"shape"', '"dtype": "F32", "shape"', 1).encode())),
    )
    for numbers in (
        [begin + 4, end + 4],
        [begin - 4, end],
        [end, begin],
        [begin, end + 4],
        [begin, end - 4],
        [0, end - begin],
    ):
        yield f"offsets {numbers}", other(data_offsets=numbers)
    for wrong in (
        [],
        [begin],
        [begin, end, end],
        [-1, 31],
        [0.0, 32.0],
        ["0", "32"],
        [None, None],
        {},
        None,
        True,
        [True, 33],
    ):
        yield f"the offsets {wrong}", other(data_offsets=wrong)
    for offsets in ([2**63, 2**63 + 32], [2**64, 2**64 + 32], [10**4000, 10**4000 + 32]):
        yield f"offsets of {len(str(offsets[0]))} digits", other(data_offsets=offsets)
    for shape in (
        [7],
        [9],
        [4, 2],
        [8, 1],
        [],
        [-8],
        [8.0],
        ["8"],
        [True] * 8,
        [[8]],
        None,
        {},
        8,
        [2**63],
        [10**4000, 10**4000],
    ):
        yield f"the shape {str(shape)[:40]}", other(shape=shape)
    yield "a shape whose product overflows", other(shape=[2**62, 4, 2])
    yield "a shape of ten thousand dimensions", other(shape=[1] * 10_000)
    for dtype in (
        "F64",
        "F16",
        "F8_E4M3",
        "F8_E5M2",
        "I8",
        "U8",
        "BOOL",
        "I32",
        "I64",
        "C64",
        "f32",
        "",
        "F4",
        "U" * 10**5,
        32,
        None,
    ):
        yield f"the dtype {str(dtype)[:20]}", other(dtype=dtype)
    for dtype in ("I32", "U32", "F8_E8M0"):
        yield (
            f"all of dtype {dtype}",
            _weights(file_of({name: {**one, "dtype": dtype} for name, one in fields.items()})),
        )
    yield "a further field", other(stride=[1])
    for missing in ("dtype", "shape", "data_offsets"):
        yield (
            f"no {missing}",
            _weights(file_of({**fields, norm: {key: one for key, one in entry.items() if key != missing}})),
        )
    yield "an entry that is a list", _weights(file_of({**fields, norm: [entry]}))
    yield (
        "the same bytes for all",
        _weights(
            file_of(
                {
                    name: {**one, "data_offsets": [0, one["data_offsets"][1] - one["data_offsets"][0]]}
                    for name, one in fields.items()
                }
            )
        ),
    )
    for lost in (norm, "lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        yield (
            f"{lost} under another name",
            _weights(file_of({(name if name != lost else name + "2"): one for name, one in fields.items()})),
        )
    prefixed = {f"module.{name}": one for name, one in fields.items()}
    yield "all names with a prefix", _weights(file_of(prefixed))
    huge = {**fields, norm: {"dtype": "F32", "shape": [2**38], "data_offsets": [begin, begin + 2**40]}}
    yield "a terabyte that is not there", _weights(file_of(huge))
    yield (
        "a terabyte in a hole",
        _weights(
            Hole(file_of({norm: {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}, b""), 2**40 + 90)
        ),
    )


def _configs() -> Iterator[tuple[str, Files]]:
    for text in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"{}",
        b'{"model_type": "llama"',
        b"\x00" * 100,
    ):
        yield f"the text {text!r}", _config(text)
    yield "9 MB of spaces", _config(lambda: b" " * 9_000_000)
    yield "11 MB", _config(lambda: b" " * 11_000_000)
    yield "too deep", _config(b'{"a":' * 500 + b"1" + b"}" * 500)
    yield (
        "unknown keys without end",
        _config(lambda: json.dumps({**CONFIG, **{f"key{i}": i for i in range(100_000)}}).encode()),
    )
    yield (
        "lists without end",
        _config(lambda: b'{"model_type": "llama", "a": [' + b",".join([b"[]"] * 2_000_000) + b"]}"),
    )
    yield "a key twice", _config((json.dumps(CONFIG)[:-1] + ', "vocab_size": 21}').encode())
    for key in (*SHAPE, "num_key_value_heads", "max_position_embeddings"):
        for value in (-1, 0, 1.5, "8", True, [], {}, 2**64, 10**30):
            yield f"{key} = {json.dumps(value)}", _config({**CONFIG, key: value})
    for key in SHAPE:
        yield f"no {key}", _config({name: value for name, value in CONFIG.items() if name != key})
        yield f"{key} of other tensors", _config({**CONFIG, key: 2 * SHAPE[key]})
    for key in ("rms_norm_eps", "rope_theta"):
        for number in ("NaN", "Infinity", "-Infinity", "1e999", "-1.0", "0", '"a"', "[]", "true", "1" + "0" * 400):
            fields = json.dumps({name: value for name, value in CONFIG.items() if name != key})
            yield f"{key} = {number[:20]}", _config(f'{fields[:-1]}, "{key}": {number}}}'.encode())
    for scaling in (
        {"rope_type": "llama3"},
        {"rope_type": "yarn", "factor": -1.0},
        {"rope_type": "linear", "factor": 0},
        {"rope_type": "mystery", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [], "long_factor": []},
        {"rope_type": "dynamic", "factor": 1e300, "surprise": {}},
        {"type": "linear", "rope_type": "dynamic", "factor": 2.0},
        [],
        "linear",
        7,
    ):
        if scaling != []:
            yield f"rope_scaling = {json.dumps(scaling)[:60]}", _config({**CONFIG, "rope_scaling": scaling})
    for model_type in (
        "bert",
        "mixtral",
        "llava",
        "LLAMA",
        "../llama",
        "",
        None,
        7,
        [],
        {"a": 1},
        "llama\x00",
        "x" * 10**6,
    ):
        yield f"model_type = {str(model_type)[:20]!r}", _config({**CONFIG, "model_type": model_type})
    foreign: dict[str, Any] = {
        "auto_map": {"AutoModelForCausalLM": "evil.Evil"},
        "quantization_config": {"quant_method": "gptq", "bits": 4},
        "hidden_act": "__import__('os').system('id')",
        "num_local_experts": 8,
        "vision_config": {},
        "layer_types": ["sliding_attention"] * 2,
        "sliding_window": 4,
        "partial_rotary_factor": 0.5,
        "attn_logit_softcapping": 30.0,
        "is_encoder_decoder": True,
        "tie_word_embeddings": "yes",
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 16,
        "eos_token_id": 10**9,
        "eos_token_ids": [1],
        "mystery": 0,
        "\x1b[2J": 1,
        "torch_dtyp": "float32",
        "experts_implementation_": 1,
    }
    for key, value in foreign.items():
        yield f"{key!r} = {str(value)[:30]}", _config({**CONFIG, key: value})
    for eos in (-1, 20, [1, -1], ["2"], 1.5, True, {}, [[1]]):
        yield f"eos_token_id = {eos}", _config({**CONFIG, "eos_token_id": eos})
    tied = {**CONFIG, "tie_word_embeddings": True}
    other = bytearray(file_of(header()))
    other[-4:] = b"\x00\x00\x00\x40"
    yield "tied embeddings that differ", _with(config__json=json.dumps(tied).encode(), model__safetensors=bytes(other))
    for saved in ("0" * 16, 7, None):
        metadata = {"__metadata__": {"prenorm_save_id": "1" * 16}}
        yield (
            f"weights of another save, {saved}",
            _with(
                config__json=json.dumps({**CONFIG, "prenorm_save_id": saved}).encode(),
                model__safetensors=file_of({**metadata, **header()}),
            ),
        )


def _indexes() -> Iterator[tuple[str, Files]]:
    files = shard_files()
    index = json.loads(files[INDEX])
    names = sorted(tensors())
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

    def other(**changes: Any) -> Files:
        return files | {INDEX: json.dumps({**index, **changes}).encode()}

    def mapped(shard: Any, name: str = names[0]) -> Files:
        return other(weight_map={**index["weight_map"], name: shard})

    for text in (b"", b"{", b"[]", b"null", b"{}", b"\xff"):
        yield f"the text {text!r}", files | {INDEX: text}
    for value in (None, [], {}, "x", 7, {"a": None}, {"a": []}, {"a": 1}):
        yield f"the weight map {value}", other(weight_map=value)
    for shard in (
        f"../{SECRET}",
        f"/tmp/{SECRET}",
        f"./../{SECRET}",
        "..",
        ".",
        "",
        "/",
        f"sub/../../{SECRET}",
        f"sub/{first}",
        f"..\\{SECRET}",
        f"{first}\x00",
        "\ud800.safetensors",
        "x" * 300 + ".safetensors",
        "x" * 10**6 + ".safetensors",
        "missing.safetensors",
        "pytorch_model.bin",
        "config.json",
        "\x1b[31m.safetensors",
        "%2e%2e%2f" + SECRET,
        "file:///etc/passwd.safetensors",
        "//etc/passwd.safetensors",
        "~/x.safetensors",
        "$HOME.safetensors",
    ):
        yield f"a shard called {shard[:40]!r}, {len(shard)} characters", mapped(shard)
    yield "a tensor in the other shard", mapped(first if index["weight_map"][names[0]] == second else second)
    yield "a tensor that is not there", mapped(first, "model.extra.weight")
    fewer = {name: shard for name, shard in index["weight_map"].items() if name != names[0]}
    yield "a tensor that is not listed", other(weight_map=fewer)
    yield "a shard that is not there", {name: one for name, one in files.items() if name != second}
    yield "no shard that is there", {name: one for name, one in files.items() if name not in (first, second)}
    yield "a shard that is cut", files | {second: files[second][:-5]}
    yield "a shard that is a pickle", files | {second: b"\x80\x02}q\x00."}
    yield "a shard that links out", files | {second: Link(f"../{SECRET}")}
    yield "a shard that links to /etc/passwd", files | {second: Link("/etc/passwd")}
    yield "a shard that links to itself", files | {second: Link(second)}
    yield "a shard that links to nothing", files | {second: Link("nothing")}
    yield "a shard that is a folder", files | {second: Folder()}
    yield "a shard that is a pipe", files | {second: Pipe()}
    yield "a shard that is a device", files | {second: Link("/dev/zero")}
    yield "an index that links out", files | {INDEX: Link(f"../{SECRET}")}
    yield "an index that is a pipe", files | {INDEX: Pipe()}
    for size in (-1, "x", [], {}, None, True):
        yield f"a total size of {size}", other(metadata={"total_size": size})
    yield "metadata that is a list", other(metadata=[])
    yield "both shards with all tensors", files | {first: file_of(header()), second: file_of(header())}
    yield (
        "100,000 tensors",
        files | {INDEX: lambda: json.dumps({"weight_map": {f"t{i}": first for i in range(100_000)}}).encode()},
    )
    yield "5,000 shards", other(weight_map={f"t{i}": f"s{i}.safetensors" for i in range(5_000)})
    yield "9 MB of spaces", files | {INDEX: lambda: b" " * 9_000_000}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    many = {f"s{i}.safetensors": {f"t{i}.{j}": empty for j in range(300)} for i in range(60)}
    yield (
        "60 shards of 300 tensors",
        {
            **{name: content for name, content in files.items() if name not in (first, second)},
            **{shard: file_of(fields, b"") for shard, fields in many.items()},
            INDEX: json.dumps(
                {"weight_map": {name: shard for shard, fields in many.items() for name in fields}}
            ).encode(),
        },
    )


def _places() -> Iterator[tuple[str, Files]]:
    pickle = b"cos\nsystem\n(S'touch opened'\ntR."
    for name in ("pytorch_model.bin", "model.pt", "consolidated.00.pth", "model.ckpt", "model.pkl", "weights.pickle"):
        yield f"only {name}", _with(model__safetensors=None) | {name: pickle}
    sharded = {"pytorch_model-00001-of-00001.bin": pickle, "pytorch_model.bin.index.json": b"{}"}
    yield "sharded pickles", _with(model__safetensors=None) | sharded
    yield "no weights", _with(model__safetensors=None)
    yield "no config", _with(config__json=None)
    for name in ("config.json", "model.safetensors", "generation_config.json", "tokenizer.json"):
        yield f"{name} links out", good() | {name: Link(f"../{SECRET}")}
        yield f"{name} links to /etc/passwd", good() | {name: Link("/etc/passwd")}
        yield f"{name} links to a device", good() | {name: Link("/dev/zero")}
        yield f"{name} links to itself", good() | {name: Link(name)}
        yield f"{name} links to nothing", good() | {name: Link("nothing")}
        yield f"{name} is a folder", good() | {name: Folder()}
        yield f"{name} is a pipe", good() | {name: Pipe()}
    yield "config.json by another link", good() | {"config.json": Link("linked"), "linked": Link(f"../{SECRET}")}
    yield "a folder that links out", good() | {"sub": Link(".."), "model.safetensors": Link(f"sub/{SECRET}")}
    for name in ("tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.jinja"):
        yield f"{name} links out", good() | {name: Link("/etc/passwd")}
    yield "a chat template that links out", good() | {"additional_chat_templates/x.jinja": Link("/etc/passwd")}
    yield "a tokenizer.model of a gigabyte", good() | {"tokenizer.model": Hole(b"", 10**9)}
    yield "a config.json of a gigabyte", good() | {"config.json": Hole(b"{", 10**9)}


def _generation_configs() -> Iterator[tuple[str, Files]]:
    for text in (
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"temperature": NaN}',
        b'{"eos_token_id": 1, "eos_token_id": 2}',
        b" " * 11_000_000,
    ):
        yield f"the text {text[:40]!r}", _with(generation_config__json=text)
    for fields in (
        {"eos_token_id": 20},
        {"eos_token_id": -1},
        {"eos_token_id": ["2"]},
        {"eos_token_id": {}},
        {"do_sample": "yes"},
        {"do_sample": True, "temperature": -1},
        {"do_sample": True, "top_k": -1},
        {"do_sample": True, "top_p": 7},
        {"do_sample": True, "min_p": "x"},
        {"repetition_penalty": 0},
        {"repetition_penalty": []},
        {"max_new_tokens": 10**30},
        {"max_length": -5},
        {"num_beams": 4},
        {"stop_strings": [""]},
        {"watermarking_config": {}},
        {"mystery": True},
    ):
        yield json.dumps(fields), _with(generation_config__json=json.dumps(fields).encode())


def _tokenizers() -> Iterator[tuple[str, Files]]:
    fields = tokenizer()
    model = fields["model"]

    def other(**changes: Any) -> Files:
        return _with(tokenizer__json=json.dumps({**fields, **changes}).encode())

    for text in (b"", b"{", b"[]", b"{}", b"\xff\xfe", b"\x00" * 100, b"null", b"[" * 10**6, b'{"a":' * 10**5):
        yield f"the text {text[:20]!r}, {len(text)} bytes", _with(tokenizer__json=text)
    yield "200 MB", _with(tokenizer__json=Hole(b"{", 200_000_000))
    for name, value in {
        "no type": {"vocab": 3},
        "vocab of numbers": {**model, "vocab": {"a": "b"}},
        "negative ids": {**model, "vocab": {"a": -1}},
        "ids beyond 32 bits": {**model, "vocab": {"a": 2**32}},
        "merges of unknown tokens": {**model, "merges": [["y", "z"]]},
        "merges that are no pairs": {**model, "merges": ["abc"]},
        "merges whose result is unknown": {**model, "merges": [["a", "b"]]},
        "a type that is none": {"type": "Mystery", "vocab": {}},
        "unigram without pieces": {"type": "Unigram", "unk_id": 7, "vocab": []},
        "unigram with an unknown unk": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]},
    }.items():
        yield name, other(model=value)
    for name, pattern in {"a wrong regex": "(", "a regex of a megabyte": "(" * 10**6}.items():
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        yield name, other(pre_tokenizer=split)
    yield "a charsmap that is none", other(normalizer={"type": "Precompiled", "precompiled_charsmap": "!!!"})
    yield "a post-processor that is none", other(post_processor={"type": "TemplateProcessing", "single": "$A x"})
    yield "a decoder that is none", other(decoder={"type": "Mystery"})
    yield "added tokens that are none", other(added_tokens=[{"id": "a"}])
