# Each target sets up what it needs in .venv; nothing is installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help demo test test-all lint bench clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run  ## Train the embedded tiny model on the embedded data, and show what it learnt
	$(BIN)/sftkit run --output runs/demo --overwrite

lint: $(VENV)/.dev  ## Lint, types, import contracts, and the demo's files against their script
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/make_demo.py --check

test: lint  ## Everything that CI checks
	$(BIN)/python -m pytest -m "not slow"

test-all: lint  ## And the slow tests
	$(BIN)/python -m pytest

bench: $(VENV)/.dev  ## Measure beside the peers
	$(BIN)/python benchmarks/startup.py

clean:  ## Remove the virtual environment and the runs
	rm -rf $(VENV) runs
