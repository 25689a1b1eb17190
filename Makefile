# Needs Python >= 3.11 with venv, and make. `make demo` and `make test` install on first use.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
  command -v $$name > /dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
  && command -v $$name && break; done)
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.core-installed
DEV    := $(VENV)/.dev-installed
LIVE   := .venv-live/.installed
LAUNCH := .venv-launchers/.installed
# Processes of the live tests; on a GPU one, since each engine takes the whole card's memory.
LIVE_WORKERS ?= 2
# The live environment has PyTorch; where it is not installed, those tests get one of their own.
TORCH  := $(if $(wildcard $(LIVE)),$(LIVE),.venv-torch/.installed)

.DEFAULT_GOAL := help
.PHONY: help demo test test-torch test-live test-launchers test-browser live-demo live-gpu bench lint types docs clean

help: ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21

demo: $(CORE) ## Install if need be, and run the main job: two tables and the figures.
	$(BIN)/andes-opt demo hydra.run.dir=demo_output

test: $(DEV) ## Install if need be, and run the core tests.
	$(BIN)/pytest -q -n auto

test-torch: $(TORCH) ## Run the tests that need PyTorch, in an environment that has it.
	$(dir $(TORCH))bin/python -m pytest -q -m torch

test-live: $(LIVE) ## Install vLLM if need be, and run the tests against the real engine.
	.venv-live/bin/python -m pytest -q -m live -n $(LIVE_WORKERS) --dist worksteal

live-demo: $(LIVE) ## Install vLLM if need be; a real answer, and an overload with and without us.
	.venv-live/bin/andes-opt live-demo hydra.run.dir=live_demo_output

live-gpu: ## On a machine with an NVIDIA GPU: the live tests and the live demo on it.
	@nvidia-smi --list-gpus 2> /dev/null || { echo "No NVIDIA GPU found; see make test-live." >&2; exit 1; }
	$(MAKE) test-live live-demo LIVE_WORKERS=1

test-launchers: $(LAUNCH) ## Run the tests on Slurm's and Ray's launchers, in an environment of their own.
	.venv-launchers/bin/python -m pytest -q -m launchers

test-browser: $(DEV) ## Look at the report's page in Chromium, which is installed if it can be.
	./.ci/install-browser
	$(BIN)/pytest -q -m browser

bench: $(DEV) ## Measure the exact solver and certify it: 25 minutes, best on a quiet machine.
	$(BIN)/python -m benchmarks.bench_exact
	$(BIN)/python -m benchmarks.certify

lint: $(DEV) ## Check style and format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## Check types.
	$(BIN)/mypy

docs: $(DEV) ## Make the figures and number blocks of the documents again.
	$(BIN)/python -m experiments.documents.blocks README.md docs/structure.md docs/studies.md
	mkdir -p docs/figures && cp demo_output/*.png docs/figures/

clean: ## Remove the environments and what runs wrote.
	rm -rf $(VENV) .venv-torch .venv-launchers .venv-live models demo_output live_demo_output outputs multirun

define need-python
@test -n "$(PYTHON)" || { \
  echo "No Python >= 3.11 found as python3; set PYTHON=/path/to/one." >&2; exit 1; }
endef

$(BIN)/python:
	$(need-python)
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(CORE)

.venv-torch/.installed: pyproject.toml $(DEV) .ci/install-torch .ci/install-cpu-torch
	./.ci/install-torch $(BIN)/python .venv-torch
	@touch $@

$(LAUNCH): pyproject.toml $(DEV) .ci/install-launchers
	./.ci/install-launchers $(BIN)/python .venv-launchers
	@touch $@

$(LIVE): pyproject.toml .ci/install-live .ci/install-cpu-torch
	$(need-python)
	./.ci/install-live $(PYTHON) .venv-live
	@touch $@
