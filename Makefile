# `make demo` and `make test` set up what they need in .venv, once. Another Python: make PYTHON=python3.12 demo
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# What is installed is known by its hashes, but where that was never tried: there the same versions are installed without.
# Another build of PyTorch, whose hash is not known: make HASHED= demo
ifeq ($(shell uname -sm),Linux x86_64)
HASHED := yes
endif
ifdef HASHED
LOCKED := $(PIP) --no-deps --require-hashes --only-binary :all: --requirement requirements
define install
	$(LOCKED)/$(1).txt
	$(LOCKED)/torch-cpu.txt 2>/dev/null || $(LOCKED)/cuda.txt  # the small build of PyTorch, if pip knows a place for it
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check
endef
else
define install
	@echo "without hashes: they are for Linux on x86-64"
	$(PIP) --constraint constraints.txt --editable '.$(if $(filter dev,$(1)),[dev])'
endef
endif

.PHONY: demo test lint audit bench gpu-wheels gpu-dry-run clean

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

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt $(wildcard requirements/*.txt)
	@echo "installing capsnet into $(VENV) …"
	$(call install,core)
	@touch $@

# Not after .installed: the kernels would be compiled twice.
$(VENV)/.installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt $(wildcard requirements/*.txt)
	@echo "installing capsnet and what the tests need into $(VENV) …"
	$(call install,dev)
	@touch $(VENV)/.installed $@

audit: $(VENV)/.installed-dev  ## known vulnerabilities of what is installed; asks a service on the internet
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --progress-spinner off $(foreach file,dev cuda,--requirement requirements/$(file).txt)

bench: $(VENV)/.installed  ## speed and memory beside a textbook implementation
	$(BIN)/capsnet bench

gpu-wheels: $(VENV)/.installed  ## what scripts/gpu.sh takes to a machine with a GPU and no network: docs/gpu.md
	rm -rf .gpu
	$(PIP) --constraint constraints.txt --target .gpu/site --no-deps --only-binary=:all: --python-version 3.12 --implementation py --abi none \
		--platform any --requirement tests/bare_machine/carried.txt
	$(BIN)/python scripts/gpu_site.py

gpu-dry-run: $(VENV)/.installed-dev  ## scripts/gpu.sh, tried on this machine's CPU with tiny rows
	$(BIN)/python -m pytest tests/test_gpu_script.py

clean:  ## remove the environment; runs are kept
	rm -rf $(VENV)
