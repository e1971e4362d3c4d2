# Works in its own virtual environment; `make test` and `make demo` set it up when it is stale.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Two workers, or one on a machine with one core.
JOBS ?= $(shell [ "$$(getconf _NPROCESSORS_ONLN)" -gt 1 ] && echo 2 || echo 1)

# The second ones run other systems too; `make bench-gpu` is for machines with a GPU.
BENCH := cluster import_edges negatives partitions scale
BENCH_PEERS := eval_speed import_speed train_speed

.PHONY: install fmt lint type test test-all chaos check demo bench bench-gpu bench-peers quality docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,demo]'
	touch $@

fmt: install
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format .

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: install
	$(BIN)/mypy

# Compiled once before, or every process of a test would.
COMPILE := $(BIN)/python -c 'from biggraph.train.kernels.compiling import compile_all; compile_all()'

test: install
	$(COMPILE)
	$(PYTEST) -m 'not slow and not gpu and not chaos' -n $(JOBS)

test-all: install
	$(COMPILE)
	$(PYTEST) -m 'not chaos' -n $(JOBS)

# The cluster in a simulated world, for BIGGRAPH_SEEDS seeds (20,000: about an hour).
chaos: install
	$(COMPILE)
	$(PYTEST) -m chaos -n $(JOBS)

check: lint type test

demo: install
	$(BIN)/python scripts/demo.py

# Half an hour.
bench: install
	set -e; for name in $(BENCH); do $(BIN)/python benchmarks/$$name.py; done

# An hour and more; installs the other systems into environments of their own.
bench-peers: install
	benchmarks/peers/setup.sh
	set -e; for name in $(BENCH_PEERS); do $(BIN)/python benchmarks/$$name.py; done

# On a machine with an NVIDIA GPU: its tests, rates, ceilings, and FB15k-237 from $BIGGRAPH_DATA.
bench-gpu: install
	$(BIN)/python benchmarks/gpu.py

quality: install
	$(BIN)/python scripts/quality.py

docs: install
	$(BIN)/python scripts/generate_docs.py

clean:
	rm -rf $(VENV) demo-output build .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
