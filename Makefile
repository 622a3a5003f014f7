# make demo: set everything up and train the demo model.   make test: set everything up and run the tests.
# Nothing is needed but Python 3.11 or newer, make and a compiler; everything is installed into .venv.

PYTHON ?= python3
# make test TORCH=2.14.1: with another release than constraints.txt has, in an environment of its own.
VENV := .venv$(if $(TORCH),-torch-$(TORCH))
BIN := $(VENV)/bin
CPP := $(wildcard src/prenorm/kernels/cpu/*.h src/prenorm/kernels/cpu/*.cpp tests/kernels/recorded/*.cpp tests/faults/*.cpp)

.DEFAULT_GOAL := help
.PHONY: help fuzz demo test test-quick test-long test-all test-grid test-check test-isa test-kernels test-wheel check
.PHONY: format bench bench-all bench-attention bench-blocks bench-decode against lines flops pictures bench-linear
.PHONY: bench-llama bench-memory bench-norm bench-open bench-quantized bench-checkpoints bench-checkpointing bench-data
.PHONY: bench-training bench-pages example-dates wheel clean bench-check bench-avx2

help:
	@echo "make demo    set up and train the demo language model (about 5 minutes on 2 cores), then write with it"
	@echo "make test    set up and prove the package, in six minutes on 2 cores (TORCH=2.14.1: with that release, in .venv-torch-2.14.1)"
	@echo "make test-quick        the maths, the layers, the blocks: an answer in a minute"
	@echo "make test-long         the cases that make test leaves out, and the kernels with other instructions (at most 20 minutes)"
	@echo "make test-all          both, and the sweeps that are marked slow"
	@echo "make test-grid         every way of running every model against the oracle: 8,926 cells (a quarter of an hour or more)"
	@echo "make test-check        every faulty, right and hostile block against prenorm check (more than an hour; can be stopped and continued)"
	@echo "make test-isa          the C++ kernels' tests with x86-64-v3 and with plain x86-64 code (about 3 minutes)"
	@echo "make test-kernels      the same with every set of instructions, with sanitizers, and on aarch64 (about 30 minutes)"
	@echo "make test-wheel        build the wheel, and try it in a new environment without a compiler (about 4 minutes)"
	@echo "make fuzz              fuzz the loader of Hugging Face folders, and measure what of it was reached (50 minutes)"
	@echo "make check   formatting, lint and types"
	@echo "make format  format all files"
	@echo "make bench         blocks, decoding, int8 and int4, a training step: tables and runs/bench/*.json (about 15 minutes; KEEP=1: benchmarks/results too)"
	@echo "make bench-all     the same with 1.1B parameters, and against llama.cpp (about 40 minutes)"
	@echo "make bench-avx2        all of it with everybody held to AVX2 (about 40 minutes)"
	@echo "make bench-attention   attention on a CPU against PyTorch's, in turn (about 5 minutes)"
	@echo "make bench-blocks      a block on a CPU against those of transformers, x-transformers and PyTorch (about 4 minutes)"
	@echo "make bench-decode      decoding on a CPU against transformers (about 5 minutes; LARGE=1 with 1.1B parameters too)"
	@echo "make bench-linear      float32 products through oneDNN and through MKL"
	@echo "make bench-llama       decoding on a CPU against llama.cpp, which it compiles first (LARGE=1 as above)"
	@echo "make bench-memory      the peak memory of a training step: counted, tracked by PyTorch, resident (about 5 minutes)"
	@echo "make bench-norm        RMSNorm against LayerNorm, the textbook formula and PyTorch's own"
	@echo "make bench-open        the time and memory until the first logits of a folder, against transformers"
	@echo "make bench-quantized   writing in bfloat16, int8 and int4 (about 2 minutes; LARGE=1; RUN=runs/demo: how much worse)"
	@echo "make bench-checkpoints   what saving checkpoints beside training costs, and the hashes on opening (about 15 minutes)"
	@echo "make bench-checkpointing   what activation checkpointing saves and costs"
	@echo "make bench-check       prenorm check --batch on 60 submissions (about 4 minutes)"
	@echo "make bench-data        text to tokens beside the tokenizer alone, and tokens to batches (under 3 minutes)"
	@echo "make bench-training    training on a CPU against transformers, step by step and piece by piece (about 3 minutes)"
	@echo "make bench-pages       write the tables of README and docs anew from benchmarks/results"
	@echo "make against OLD=DIR   this checkout against another one: bits, and speed (about 20 minutes)"
	@echo "make lines             how many lines there are to read"
	@echo "make flops             where the operations of a forward pass go: tables, and the picture in docs/pictures"
	@echo "make pictures          draw the block and the house anew, into docs/pictures"
	@echo "make example-dates     train an encoder-decoder to read dates in some hundred languages"
	@echo "make wheel   build dist/prenorm-*.whl for Linux on x86_64, with the C++ kernels in it (about 2 minutes)"
	@echo "make clean   remove .venv and everything that was built (runs/ stays)"

demo: $(VENV)/demo.stamp
	$(BIN)/prenorm train

# Two workers with a thread each; each of them and all that it starts has a core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal
QUICK := tests/test_house.py tests/test_config.py tests/test_public_surface.py tests/ops tests/layers tests/blocks tests/equality

test: $(VENV)/dev.stamp
	$(PYTEST) --durations 20

test-quick: $(VENV)/dev.stamp
	$(PYTEST) $(QUICK)

test-long: $(VENV)/dev.stamp
	$(PYTEST) --durations 20 -m "long and not slow"
	$(MAKE) test-isa

test-all: $(VENV)/dev.stamp
	$(PYTEST) --durations 20 -m ""

test-grid: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.equality

# Ten minutes for each; new inputs go to runs/fuzz. The last command fails where the loader's branches are not reached.
fuzz: $(VENV)/fuzz.stamp
	for target in header config index manifest tokenizer; do \
		OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $$target $(or $(SECONDS),600) || exit 1; done
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz coverage

test-isa: $(VENV)/dev.stamp
	$(BIN)/python -m tests.isa x86-64-v3 x86-64

test-kernels: $(VENV)/dev.stamp
	$(BIN)/python -m tests.isa

test-wheel: wheel
	$(BIN)/python -m tests.wheel

check: $(VENV)/dev.stamp
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Results are kept in runs/test-check: what was stopped continues where it was, as long as the checker is the same.
test-check: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.checks.measure --keep runs/test-check/corpus.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.checks.measure --strangers --keep runs/test-check/strangers.jsonl
	$(BIN)/pip install --quiet --no-deps litgpt lightning-utilities timm  # their requirements would change torch's version
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.checks.witnesses --keep runs/test-check/witnesses.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.checks.hostile
	PRENORM_ALL_CHECKS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/checks/test_corpus.py tests/checks/test_strangers.py tests/checks/start/test_start.py tests/challenge

format: $(VENV)/dev.stamp
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# KEEP=1: write the numbers into benchmarks/results too.
WRITE = $(if $(KEEP),--keep) --json runs/bench

bench: $(VENV)/litgpt.stamp
	$(BIN)/python benchmarks/blocks.py $(WRITE)/blocks.json
	$(BIN)/python benchmarks/decode.py $(if $(LARGE),--large) $(WRITE)/decode.json
	$(BIN)/python benchmarks/quantized.py $(if $(LARGE),--large) $(WRITE)/quantized.json
	$(BIN)/python benchmarks/training.py --only step-float32 step-bfloat16 loss-float32 loss-bfloat16 $(WRITE)/training.json

bench-all: $(VENV)/llama.stamp
	$(MAKE) bench LARGE=1
	$(BIN)/python benchmarks/decode_llama_cpp.py --large $(WRITE)/llama.json

# Everybody held to AVX2, as on processors without AVX-512. PyTorch's own products in bfloat16 take minutes there. Inductor
# needs a cache of its own: it takes code from there that was generated for wider vectors, which gives NaN, or crashes.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 PRENORM_ISA=x86-64-v3 \
	TORCHINDUCTOR_CACHE_DIR=$(abspath $(VENV))/inductor-avx2
AVX2_TRAINING := --only step-float32 loss-float32 pieces-float32 pieces-bfloat16
AVX2_CMAKE := -DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON

bench-avx2: $(VENV)/litgpt.stamp $(VENV)/llama-avx2.stamp
	$(AVX2) $(BIN)/python benchmarks/blocks.py $(WRITE)/blocks-avx2.json
	$(AVX2) $(BIN)/python benchmarks/norm.py
	$(AVX2) $(BIN)/python benchmarks/attention.py --only first
	$(AVX2) $(BIN)/python benchmarks/decode_pieces.py
	$(AVX2) $(BIN)/python benchmarks/decode.py $(WRITE)/decode-avx2.json
	$(AVX2) $(BIN)/python benchmarks/training.py $(AVX2_TRAINING) $(WRITE)/training-avx2.json
	$(AVX2) PYTHONPATH=$(VENV)/llama-avx2 $(BIN)/python benchmarks/decode_llama_cpp.py $(WRITE)/llama-avx2.json

bench-attention: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/attention.py

bench-blocks: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/blocks.py

bench-decode: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/decode_pieces.py
	$(BIN)/python benchmarks/decode.py $(if $(LARGE),--large)

bench-linear: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/linear.py

bench-llama: $(VENV)/llama.stamp
	$(BIN)/python benchmarks/decode_llama_cpp.py $(if $(LARGE),--large)

bench-memory: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/memory.py

bench-norm: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/norm.py

bench-open: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/open_folder.py

bench-quantized: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/quantized.py $(if $(LARGE),--large) $(if $(RUN),--run $(RUN))

bench-checkpointing: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/checkpointing.py

bench-checkpoints: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/checkpoints.py

bench-check: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/check_batch.py

bench-data: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/data.py

bench-training: $(VENV)/litgpt.stamp
	$(BIN)/python benchmarks/training.py

bench-pages: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/pages.py

against: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/against.py $(OLD)

lines: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/lines_to_read.py

flops: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/flops.py

pictures: $(VENV)/dev.stamp
	$(BIN)/python docs/pictures/draw.py

example-dates: $(VENV)/dev.stamp
	GOMP_SPINCOUNT=1000 $(BIN)/python examples/dates.py

wheel: $(VENV)/dev.stamp
	PRENORM_WHEEL=manylinux_2_28_x86_64 $(BIN)/python -m hatchling build --target wheel

clean:
	rm -rf .venv .venv-torch-* build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prenorm needs Python 3.11 or newer; make PYTHON=python3.12 ... names one")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/constraints.txt: $(BIN)/python constraints.txt
	sed 's/^torch==.*/torch==$(or $(TORCH),$(shell sed -n 's,^torch==,,p' constraints.txt))/' constraints.txt > $@

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml $(VENV)/constraints.txt
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e ".[plot]"
	touch $@

$(VENV)/dev.stamp: $(BIN)/python pyproject.toml $(VENV)/constraints.txt
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e ".[dev]"
	touch $@ $(VENV)/demo.stamp

# Without what it depends on: it wants an older huggingface-hub than transformers does, for downloads alone.
$(VENV)/litgpt.stamp: $(VENV)/dev.stamp
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(VENV)/litgpt litgpt==0.5.13 lightning==2.6.6 \
		pytorch-lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0 jsonargparse==4.41.0
	touch $@

$(VENV)/fuzz.stamp: $(VENV)/dev.stamp
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e ".[fuzz]"
	touch $@

$(VENV)/llama-avx2.stamp: $(VENV)/llama.stamp
	CMAKE_ARGS="$(AVX2_CMAKE)" $(BIN)/pip install --quiet --no-deps --no-binary :all: --no-cache-dir --upgrade \
		--target $(VENV)/llama-avx2 -c $(VENV)/constraints.txt llama-cpp-python
	touch $@

$(VENV)/llama.stamp: $(VENV)/dev.stamp
	$(BIN)/pip install --quiet -c $(VENV)/constraints.txt -e ".[llama]"
	touch $@
