# Needs Python >= 3.11 with venv, and make. `make demo` and `make test` install on first use.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
  command -v $$name > /dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  && command -v $$name && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.core-installed
DEV    := $(VENV)/.dev-installed
TORCH  := .venv-torch/.installed
LAUNCH := .venv-launchers/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-torch test-launchers test-browser lint types docs clean

help: ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(CORE) ## Install if need be, and run the main job: two tables and the figures.
	$(BIN)/andes-opt demo hydra.run.dir=demo_output

test: $(DEV) ## Install if need be, and run the core tests.
	$(BIN)/pytest -q -n auto

test-torch: $(TORCH) ## Run the tests that need PyTorch, in an environment of their own.
	.venv-torch/bin/python -m pytest -q -m torch

test-launchers: $(LAUNCH) ## Run the tests on Slurm's and Ray's launchers, in an environment of their own.
	.venv-launchers/bin/python -m pytest -q -m launchers

test-browser: $(DEV) ## Look at the report's page in Chromium, which is installed if it can be.
	./.ci/install-browser
	$(BIN)/pytest -q -m browser

lint: $(DEV) ## Check style and format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## Check types.
	$(BIN)/mypy

docs: $(DEV) ## Make the figures and number blocks of the documents again.
	$(BIN)/python -m experiments.blocks README.md docs/structure.md
	mkdir -p docs/figures && cp demo_output/*.png docs/figures/

clean: ## Remove the environments and what runs wrote.
	rm -rf $(VENV) .venv-torch .venv-launchers demo_output outputs multirun

$(BIN)/python:
	@test -n "$(PYTHON)" || { \
	  echo "No Python >= 3.11 found as python3; set PYTHON=/path/to/one." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(CORE)

$(TORCH): pyproject.toml $(DEV) .ci/install-torch
	./.ci/install-torch $(BIN)/python .venv-torch
	@touch $@

$(LAUNCH): pyproject.toml $(DEV) .ci/install-launchers
	./.ci/install-launchers $(BIN)/python .venv-launchers
	@touch $@
