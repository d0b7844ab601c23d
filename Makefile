# In a fresh clone, run `make demo` or `make test`; both install the project first if necessary.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := runs/demo
WORKERS ?= auto
PIP = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt
# Of pip's hundreds of lines: one per download of at least 20 MB, and the number of packages.
PROGRESS := awk '/^ *Downloading .*\([0-9.]+ [MG]B\)/ && (/GB\)/ || substr($$3, 2) + 0 >= 20) \
    { printf "        downloading %s %s %s\n", $$2, $$3, $$4; fflush() } \
    /^Installing collected packages/ \
    { printf "        installing %d packages\n", NF - 3; fflush() }'
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
OPERATOR_SOURCES := setup.py $(shell find src/ops/csrc -type f 2>/dev/null)

.PHONY: help install ops demo demo-again test test-all test-gpu lint types format benchmark clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(INSTALLED) ## Create .venv, install the project and compile the operator
	@echo "==> installed. Next:"
	@echo "    source $(BIN)/activate"
	@echo "    python -m src env      # versions, devices, whether the operator is compiled"

$(INSTALLED): pyproject.toml constraints.txt $(OPERATOR_SOURCES)
	@test -x $(BIN)/python || { echo "==> creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "==> about 5 minutes on 2 cores with a fast connection (docs/quickstart.md)"
	@echo "==> 1/3 PyTorch (minutes; about 5 GB on disk on Linux, 4 GB of it CUDA"
	@echo "        libraries, which this build of PyTorch needs on computers without a GPU too)"
	@set -o pipefail; $(PIP) setuptools wheel ninja torch torchvision | $(PROGRESS)
	@echo "==> 2/3 the other packages (minutes; about 1.3 GB on disk)"
	@set -o pipefail; SRC_BUILD_OPS=0 $(PIP) --no-build-isolation -e ".[dev]" | $(PROGRESS)
	@echo "==> 3/3 compiling the operator (about a minute; minutes with nvcc and a GPU)"
	@$(BIN)/python setup.py build_ext --inplace > /dev/null
	@touch $@

ops: ## Rebuild the operator after a change in src/ops/csrc
	@$(BIN)/python setup.py build_ext --inplace

demo: $(DEMO)/done.txt ## Train, evaluate and predict on toy data (minutes on a laptop)
	@cat $<

$(DEMO)/done.txt: | $(INSTALLED)
	$(BIN)/python -m src prepare toy --root data/toy
	$(BIN)/python -m src fit --config configs/toy/classification.yaml --name demo
	$(BIN)/python -m src test --config configs/toy/classification.yaml --name demo --ckpt_path best
	$(BIN)/python -m src predict --config configs/toy/classification.yaml --name demo --ckpt_path best \
	    --data.predict_dir data/toy/imagenet/predict
	@{ echo "The demo is complete. Run 'make demo-again' to repeat it."; \
	   echo "  metrics   $$(ls -d $(DEMO)/test_* | tail -1)/metrics.csv"; \
	   echo "  images    $$(ls -d $(DEMO)/predict_* | tail -1)"; } > $@

demo-again: ## Delete the results of the demo and run it again
	@rm -rf $(DEMO) && $(MAKE) --no-print-directory demo

test: $(INSTALLED) ## Run the tests (minutes; WORKERS=0 for a single process)
	@$(PYTEST) -m "not slow and not gpu"

test-all: $(INSTALLED) ## Run all tests, including slow ones
	@$(PYTEST) -m "not gpu"

test-gpu: $(INSTALLED) ## Run the tests that need a CUDA device
	@$(BIN)/python -m pytest -q -m gpu

lint: $(INSTALLED) types ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(INSTALLED)
	@$(BIN)/mypy

format: $(INSTALLED) ## Format the code
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

benchmark: $(INSTALLED) ## Compare the speed of the operator with plain PyTorch
	@$(BIN)/python benchmarks/op_cpu.py

clean: ## Remove builds, caches and runs (not data, not .venv)
	rm -rf build dist *.egg-info src/ops/*.so runs .pytest_cache .mypy_cache .ruff_cache
