# Two commands: `make demo` and `make test`. Each sets up what is missing, once.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= demo-lake

.PHONY: setup demo test test-slow test-servers check format docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "slidelake needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --editable '.[survival,test]'
	touch $(READY)

demo: setup
	$(BIN)/slidelake demo $(DEMO)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not gpu'

test-slow: setup
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'slow and not gpu and not servers' --durations=15 tests

# Ceph, azurite, fake-gcs-server, SLURM, and a Ray of several nodes in namespaces: one at a time, about 20 minutes
test-servers: setup
	$(BIN)/pytest -m servers --durations=15 tests

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# site/: every warning is an error, so a broken link is, and a page that the navigation leaves out
docs: setup
	rm -rf site
	$(BIN)/python -m sphinx -b html -c docs/site --fresh-env --fail-on-warning --keep-going --quiet . site
	@echo "site/index.html"

clean:
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
