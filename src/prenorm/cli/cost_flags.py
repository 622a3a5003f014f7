"""The flags of `prenorm cost`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True, kw_only=True, slots=True)
class CostFlags:
    """Compute what a model costs: parameters, operations, bytes, and time and energy on given hardware.

    MODEL is a run's folder, a folder in Hugging Face's layout, or the name of a published model, such as llama-3-8b.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = ""
    """A folder with config.json (or a run's config.toml), or a model name; an unknown name lists all of them."""

    context: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens per row. Default: 2,048, or the model's max_seq_len if that is smaller."""

    batch: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Rows. Default: 1; with --gpus one for each device."""

    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of matrix products in training (weights stay float32), and of weights, keys and values in decoding."""

    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Hardware by name, such as h100-sxm, whose published figures give time and energy; an unknown name lists all."""

    flops: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Operations per second of the hardware in this dtype, such as 989e12, instead of the device's."""

    bandwidth: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Bytes per second of its memory, such as 3.35e12, instead of the device's."""

    watts: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Power draw in watts, instead of the device's."""

    utilisation: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """The fraction of these rates that is reached. Default: 1, the limit, which no run reaches; with --gpus what
    published runs reach of the predicted rate, see --published-runs."""

    tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Number of training tokens. Default: 20 per parameter (Hoffmann et al. 2022)."""

    fits: Annotated[str | None, tyro.conf.arg(metavar="BYTES")] = None
    """A memory size, such as 24GB, 80GiB or a number of bytes: adds the largest batch and context that fit."""

    gpus: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Train on this many devices of --device: memory, traffic, time and MFU of a step, with the layout that --dp,
    --fsdp, --tp and --pp give or, without them, with the fastest one; and what is wrong with the others."""

    dp: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Copies of the model, each with rows of its own. Default: what --fsdp, --tp and --pp leave of the devices."""

    fsdp: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Devices with rows of their own that share a copy's parameters, gradients and optimiser state among them."""

    tp: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Devices that split each layer's matrices, and the sequence between them."""

    pp: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Pipeline stages."""

    pp_stages: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Stages on each device: 1 for 1F1B, more for the interleaved schedule. Default: what is fastest."""

    micro_batch_size: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Rows in one forward pass of a device. Default: what is fastest."""

    checkpoint_activations_every: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Checkpoint every k-th block; 0 for none. Default: none or every block, whichever fits and is faster."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """The optimiser, with --gpus. For muon the state is counted, but not the work that makes updates orthogonal."""

    product_flops: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Operations per second that large products reach on a device, with --gpus, such as 794.5e12."""

    memory: Annotated[str | None, tyro.conf.arg(metavar="BYTES")] = None
    """Memory of a device, with --gpus, such as 80GB."""

    node: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Devices of a node. Default: 8."""

    node_link: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Bytes per second from a device to others of its node, one way, such as 450e9."""

    network_link: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Bytes per second from a device to other nodes, one way, such as 50e9 for 400 Gb/s."""

    published_runs: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print published step times beside what --gpus predicts for the same hardware and layouts; takes no MODEL."""

    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON document and nothing else; docs/what-does-a-model-cost.md explains its keys, and with --gpus
    docs/how-do-i-lay-out-a-large-model.md."""
