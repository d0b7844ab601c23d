# `make demo` and `make test` are all that a fresh clone needs; both install what is missing and can be repeated.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/demo
WORKERS ?= auto
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
OPERATOR_SOURCES := setup.py $(shell find src/ops/csrc -type f 2>/dev/null)

.PHONY: help install ops demo demo-again test test-all test-gpu lint types format benchmark clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED) ## Make .venv, install the project in it and compile the operator

$(INSTALLED): pyproject.toml constraints.txt $(OPERATOR_SOURCES)
	@test -x $(BIN)/python || { echo "==> making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "==> installing PyTorch and build tools (once; about 6 GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt setuptools wheel ninja torch torchvision
	@echo "==> installing the project and compiling the operator"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@

ops: ## Compile the operator again after a change in src/ops/csrc
	@$(BIN)/python setup.py build_ext --inplace

demo: $(DEMO)/done.txt ## Train, evaluate and predict on toy data (minutes on a laptop); prints where the images are
	@cat $<

$(DEMO)/done.txt: | $(INSTALLED)
	$(BIN)/python -m src prepare toy --root data/toy
	$(BIN)/python -m src fit --config configs/toy/classification.yaml --name demo
	$(BIN)/python -m src test --config configs/toy/classification.yaml --name demo --ckpt_path best
	$(BIN)/python -m src predict --config configs/toy/classification.yaml --name demo --ckpt_path best \
	    --data.predict_dir data/toy/imagenet/predict
	@{ echo "The demo is done; 'make demo-again' repeats it."; \
	   echo "  metrics   $$(ls -d $(DEMO)/test_* | tail -1)/metrics.csv"; \
	   echo "  images  $$(ls -d $(DEMO)/predict_* | tail -1)"; } > $@

demo-again: ## Run the demo from scratch although it has been run
	@rm -rf $(DEMO) && $(MAKE) --no-print-directory demo

test: $(INSTALLED) ## Run the tests (minutes; WORKERS=0 for a single process)
	@$(PYTEST) -m "not slow and not gpu"

test-all: $(INSTALLED) ## Run all tests, the slow ones too
	@$(PYTEST) -m "not gpu"

test-gpu: $(INSTALLED) ## Run the tests that need a CUDA device
	@$(BIN)/python -m pytest -q -m gpu

lint: $(INSTALLED) types ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED)
	@$(BIN)/mypy

format: $(INSTALLED) ## Put the code into the house format
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

benchmark: $(INSTALLED) ## Time the operator against the plain PyTorch path
	@$(BIN)/python benchmarks/op_cpu.py

clean: ## Remove builds, caches and runs (not data, not .venv)
	rm -rf build dist *.egg-info src/ops/*.so runs .pytest_cache .mypy_cache .ruff_cache
