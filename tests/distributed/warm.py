"""What the ranks of the tests are forked from: a process that has imported all this, with checked shapes."""

import gc
import os

import jaxtyping

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a thread started here would not live in the ranks
vars(os)["fsync"] = os.fstat  # as in tests/conftest.py, and so is what follows
gc.disable()

with jaxtyping.install_import_hook("prenorm", "beartype.beartype"):
    import torch.distributed.fsdp
    import torch.distributed.pipelining
    import torch.distributed.tensor.parallel  # noqa: F401

    import prenorm.distributed.mesh
    import prenorm.models.lm
    import prenorm.training.loop  # noqa: F401

gc.freeze()
gc.enable()
