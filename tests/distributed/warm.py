"""What the ranks of the tests are forked from: a process that has imported all this, with checked shapes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a thread started here would not live in the ranks

import jaxtyping

with jaxtyping.install_import_hook("prenorm", "beartype.beartype"):
    import torch.distributed.fsdp
    import torch.distributed.pipelining
    import torch.distributed.tensor.parallel  # noqa: F401

    import prenorm.distributed.mesh
    import prenorm.models.lm
    import prenorm.training.loop  # noqa: F401
