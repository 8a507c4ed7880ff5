# `make demo` and `make test` set up what they need in .venv, once. Another Python: make PYTHON=python3.12 demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint bench gpu-wheels gpu-dry-run clean

demo: $(VENV)/.installed  ## train CapsNet on MNIST for one epoch, test it, draw reconstructions
	$(BIN)/capsnet train --epochs 1

test: lint  ## everything that CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.installed-dev  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "capsnet needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing capsnet into $(VENV) …"
	$(PIP) --editable .
	@touch $@

# Not after .installed: the kernels would be compiled twice.
$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing capsnet and what the tests need into $(VENV) …"
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.installed $@

bench: $(VENV)/.installed  ## speed and memory beside a textbook implementation
	$(BIN)/capsnet bench

gpu-wheels: $(VENV)/.installed  ## what scripts/gpu.sh takes to a machine with a GPU and no network: docs/gpu.md
	rm -rf .gpu
	$(PIP) --target .gpu/site --no-deps --only-binary=:all: --python-version 3.12 --implementation py --abi none \
		--platform any --requirement tests/bare_machine/carried.txt
	$(BIN)/python scripts/gpu_site.py

gpu-dry-run: $(VENV)/.installed-dev  ## scripts/gpu.sh, tried on this machine's CPU with tiny rows
	$(BIN)/python -m pytest tests/test_gpu_script.py

clean:  ## remove the environment; runs are kept
	rm -rf $(VENV)
