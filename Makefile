# Each target sets up what it needs in .venv; nothing is installed by hand.
PYTHON ?= python3
CONSTRAINTS ?= -c constraints.txt# for Python 3.11 and newer; on 3.10 say `make demo CONSTRAINTS=`
PYTEST_FLAGS ?=
GPU_FLAGS ?=
SOAK_FLAGS ?=

VENV := .venv
BIN := $(VENV)/bin
# One thread a process: the demo's and the tests' models are so small that further threads only slow them down.
FLOORS := .venv-floors
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)
# The first variable turns off a notice of mkdocs-material.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help demo test test-all test-floors lint docs docs-serve bench soak gpu clean

help:  ## show the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 12

demo: $(VENV)/.demo  ## train the embedded tiny model on the embedded data, into runs/demo, with a report
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/sftkit run --output runs/demo --overwrite
	$(BIN)/sftkit report runs/demo

test: lint  ## everything that CI checks: lint, and all tests but the slow ones
	$(PYTEST) -m "not slow"

test-all: lint  ## also the slow tests, with coverage
	$(PYTEST) --cov=sftkit --cov=sftkit_commands --cov=sftkit_plugins --cov=sftkit_trl --cov-report=term:skip-covered

test-floors: $(FLOORS)/.done  ## the tests on the oldest supported transformers, datasets and peft
	OMP_NUM_THREADS=1 $(FLOORS)/bin/python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS) -m "not slow" tests/core tests/plugins tests/trl

lint: $(VENV)/.dev  ## style, types, who imports whom, and the demo's files against their script
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/make_demo.py --check

docs: $(VENV)/.dev  ## build the documentation into site/; a broken link, anchor or diagram is an error
	$(MKDOCS) build -f scripts/site/mkdocs.yml

docs-serve: $(VENV)/.dev  ## serve the documentation at http://127.0.0.1:8000 while you write
	$(MKDOCS) serve -f scripts/site/mkdocs.yml

bench: $(VENV)/.dev  ## measure sftkit beside its peers, with full settings
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit; done

soak: $(VENV)/.dev  ## 10,000 steps that must not leak, and 100 kills that must lose nothing; about an hour
	$(BIN)/python scripts/soak.py $(SOAK_FLAGS)

gpu: $(VENV)/.dev  ## check and measure sftkit on a GPU, in 330 s; GPU_FLAGS=--toy tries it on a CPU
	$(BIN)/python scripts/gpu.py $(GPU_FLAGS)

clean:  ## remove the virtual environment, the runs and the builds
	rm -rf $(VENV) $(FLOORS) runs dist build site

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	@touch $@

$(VENV)/.demo: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install $(CONSTRAINTS) -e ".[dev]"
	@touch $@ $(VENV)/.demo

$(FLOORS)/.done: pyproject.toml constraints-floors.txt
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip --disable-pip-version-check -q install --upgrade pip
	$(FLOORS)/bin/python -m pip --disable-pip-version-check -q install -c constraints-floors.txt -e ".[dev]"
	@touch $@
