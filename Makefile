# Two commands matter: `make demo` shows and trains the model, `make test` passes the tests.
PYTHON ?= python3
MINUTES ?= 5
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Nothing is downloaded from the Hub; one thread a process where two processes share two cores.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup check format test test-fast test-transformers demo train-tiny

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(READY)  ## create .venv and install the package with its extras

$(READY): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $(READY)

check: $(READY)  ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## rewrite the files in the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY)  ## all tests, the slow ones as well
	$(BIN)/python -m pytest -m ''

test-fast: $(READY)  ## the tests that take less than a few seconds each, on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-transformers: $(READY)  ## transformers' own common tests over our classes (fetches its sdist, some minutes)
	$(BIN)/python -m pip install --quiet --editable '.[suite]'
	TRANSFORMERS_TESTS=$$($(BIN)/python scripts/fetch_transformers_tests.py build) \
		$(BIN)/python -m pytest -o addopts= -o filterwarnings=default -rs tests/transformers_suite

demo: $(READY)  ## make the demo world, show the shipped checkpoint, train for MINUTES=5, write runs/demo/report.html
	$(BIN)/python scripts/demo.py --minutes $(MINUTES)

train-tiny: $(READY)  ## train the shipped tiny checkpoint again (about an hour on two cores, resumable)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 scripts/train_tiny.py
	$(BIN)/python scripts/ship_tiny.py
