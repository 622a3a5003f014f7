"""llama.cpp as its own programs call it: one `llama_decode` for a token of each row, no sampler, no wrapper's loop."""

import ctypes
from pathlib import Path
from typing import Any

import gguf_file
import numpy as np


class LlamaCpp:
    """A model that llama.cpp runs, by its C functions."""

    def __init__(self, file: Path, vocab_size: int, threads: int) -> None:
        import llama_cpp  # here: a process that does not call it is not to have its threads

        llama_cpp.llama_backend_init()
        self.silent = llama_cpp.llama_log_callback(lambda level, text, user_data: None)  # kept, as C keeps it
        llama_cpp.llama_log_set(self.silent, None)
        self.c, self.file, self.vocab_size, self.threads = llama_cpp, file, vocab_size, threads
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        self.context: Any = None

    def version(self) -> str:
        """Of the package, and what of the processor it was built to use."""
        return f"llama-cpp-python {self.c.__version__}: {self.c.llama_print_system_info().decode().strip(' |')}"

    def read(self) -> int:
        """Bytes of weights that a step reads."""
        return gguf_file.bytes_but_the_embedding(self.file)

    def prepare(self, rows: int, length: int, new: int, exact: bool) -> None:
        """Make room for prompts and what is written after them; exact: with attention in float32."""
        if self.context is not None:
            self.c.llama_free(self.context)
        params = self.c.llama_context_default_params()
        params.n_seq_max, params.n_ctx = rows, rows * (length + new)
        params.n_threads = params.n_threads_batch = self.threads
        if exact:
            params.type_k = params.type_v = self.c.GGML_TYPE_F32
            params.flash_attn_type = self.c.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = self.c.llama_init_from_model(self.model, params)
        self.memory = self.c.llama_get_memory(self.context)
        self.prompts, self.step = self.batch(rows, length), self.batch(rows, 1)
        self.address, self.found = 0, np.empty(0)

    def batch(self, rows: int, length: int) -> tuple[Any, np.ndarray, np.ndarray]:
        """A batch of `length` tokens of each row, all of it filled in but the tokens and their places."""
        count = rows * length
        batch = self.c.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for at in range(count):
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, at // length
            batch.logits[at] = (at + 1) % length == 0
        tokens, places = (np.ctypeslib.as_array(field, (rows, length)) for field in (batch.token, batch.pos))
        return batch, tokens, places

    def decode(self, batch: tuple[Any, np.ndarray, np.ndarray], tokens: np.ndarray, place: int) -> np.ndarray:
        """The logits after each row's last token, where the rows' tokens stand at `place` and after it."""
        whole, given, places = batch
        given[:] = tokens
        places[:] = np.arange(place, place + places.shape[1])
        if failed := self.c.llama_decode(self.context, whole):
            raise RuntimeError(f"llama_decode gave {failed}")
        logits = self.c.llama_get_logits(self.context)
        if self.address != (address := ctypes.addressof(logits.contents)):  # NumPy takes long to look at a pointer
            self.address, self.found = address, np.ctypeslib.as_array(logits, (len(given), self.vocab_size))
        return self.found

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        """Of the token after each prompt."""
        self.c.llama_memory_clear(self.memory, False)
        return self.decode(self.prompts, prompts, 0).copy()

    def write(self, prompts: np.ndarray, new: int) -> list[list[int]]:
        """The most likely tokens after each prompt."""
        self.c.llama_memory_clear(self.memory, False)
        written = np.empty((len(prompts), new), dtype=np.int64)
        written[:, 0] = self.decode(self.prompts, prompts, 0).argmax(-1)
        for i in range(1, new):
            written[:, i] = self.decode(self.step, written[:, i - 1 : i], prompts.shape[1] + i - 1).argmax(-1)
        return written.tolist()
