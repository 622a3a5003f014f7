"""A training step on many devices: the model, how it is spread, and how its rows are cut."""

from collections.abc import Iterator
from dataclasses import dataclass

from ...distributed.layout import Layout
from ...errors import ConfigError
from ...validation import check_size
from ..activations import FLOAT32, SIZES, Dtype
from ..architecture import Architecture
from ..memory import OPTIMIZERS, Optimizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One optimiser step of `batch` rows of `context` tokens, spread as `layout` says."""

    model: Architecture
    layout: Layout
    batch: int
    """Rows of a step, over all devices."""

    micro_batch: int
    """Rows that go through the model at once, on each of the layout's data ranks; all of a rank's if it has fewer."""

    context: int
    dtype: Dtype = "bfloat16"
    every: int = 1
    """Every k-th block is checkpointed; 0 for none."""

    pp_stages: int = 1
    """Stages on each device: 1 for the schedule 1F1B, more for the interleaved one."""

    optimizer: Optimizer = "adamw"

    wide: int = FLOAT32
    """Bytes of a number outside matrix products, such as in the stream between blocks and in norms: float32 in
    `prenorm train`, where products run under autocast. Others keep all but the master weights narrow."""

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "context", "pp_stages"):
            check_size(name, getattr(self, name))
        if self.every:
            check_size("every", self.every)
        if self.dtype not in SIZES:
            raise ConfigError(f"dtype must be one of {', '.join(SIZES)}, not {self.dtype!r}.")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {self.optimizer!r}.")
        if self.batch % self.layout.data_ranks:
            raise ConfigError(
                f"dp x fsdp must divide the rows of a step, but {self.layout.data_ranks} does not divide {self.batch}."
            )
        for reason in self._reasons_against_pipeline():
            raise ConfigError(f"{reason}.")

    def _reasons_against_pipeline(self) -> Iterator[str]:
        pp, each = self.layout.pp, self.pp_stages
        if pp == 1 and each > 1:
            yield f"pp_stages is for a pipeline: with pp = 1 it must be 1, not {each}"
        if pp * each > self.model.num_layers:
            yield (
                f"every stage must have a layer, but pp x pp_stages = {pp} x {each} = {pp * each} is greater "
                f"than num_layers = {self.model.num_layers}"
            )
        if pp > 1 and self.rank_rows % self.micro_batch:
            yield (
                f"micro_batch_size must divide the {self.rank_rows} rows of a process, but {self.micro_batch} does not"
            )
        if each > 1 and self.micro_batches % pp:
            yield (
                f"with pp_stages, pp must divide the micro-batches of a process, but {pp} does not divide "
                f"{self.micro_batches}"
            )

    @property
    def rank_rows(self) -> int:
        """Rows of a step on a data rank."""
        return self.batch // self.layout.data_ranks

    @property
    def micro_batches(self) -> int:
        """How many times the model runs in a step, on each data rank."""
        return -(-self.rank_rows // self.micro_batch)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on a data rank."""
        return min(self.micro_batch, self.rank_rows) * self.context

    @property
    def is_replicated(self) -> bool:
        """Whether the ranks hold whole copies of the model, so that DistributedDataParallel runs instead of FSDP2."""
        return self.layout.dp > 1 and self.layout.fsdp == self.layout.tp == self.layout.pp == 1

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 shards parameters, or makes the copies of parts of the model."""
        return self.layout.data_ranks > 1 and not self.is_replicated

    @property
    def gathers_norms_apart(self) -> bool:
        """Whether FSDP2 gathers linear maps in the dtype of products, and so each norm by itself.

        Norms in a layer that tensor parallelism splits cannot be gathered by themselves.
        """
        return self.size != self.wide and not (self.layout.tp > 1 and self.model.qk_norm)

    @property
    def gathered_size(self) -> int:
        """Bytes of a number of a linear map that FSDP2 gathers."""
        return self.size if self.gathers_norms_apart else self.wide

    @property
    def size(self) -> int:
        """Bytes of a number in matrix products."""
        return SIZES[self.dtype]

    @property
    def bubble(self) -> float:
        """The share of a step in which a device of the pipeline waits: (p - 1) / (v m + p - 1).

        Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2, as a share of the whole step.
        """
        idle = self.layout.pp - 1
        return idle / (self.pp_stages * self.micro_batches + idle)
