# Every common task is one command; each makes what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test soak check format generate clean

help:  ## list the tasks
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

demo: $(VENV)/.ready  ## the whole loop on a real drifting stream, in a few minutes
	$(BIN)/python -m examples.demo

test: $(VENV)/.ready  ## all tests
	$(BIN)/python -m pytest

soak: $(VENV)/.ready  ## the long tests: hundreds of kills, faults and broken events; an hour
	$(BIN)/python -m pytest -m slow -n 1 -rP --show-capture=stdout --timeout 14400

check: $(VENV)/.ready  ## linter, formatter and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.ready  ## format the code
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

generate: $(VENV)/.ready  ## pages, chart and dashboards that are made from the code
	$(BIN)/python -m helm.builder

clean:  ## remove the environment and all caches
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache *.egg-info build
