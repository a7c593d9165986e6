# All that people and CI run. It needs only Python: the first call makes .venv and installs the project into it.

PYTHON ?= python3
# Named by release, since a bare "torch" may bring a newer build for CUDA, several gigabytes large.
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: demo test peft-suite ends lint types docs check clean

# Fine-tunes a small pretrained encoder with three methods.
demo: $(VENV)/.demo
	$(BIN)/subspace demo

# One thread per worker: two workers with more would wait for each other. Nothing is fetched from a model hub.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/pytest -n 2

# peft's own tests on this package's adapters; tests/peft_suite/README.md says what else can be asked for.
METHODS ?= dora pissa formula
SUITE ?= test_custom_models
JOBS ?= 2
peft-suite: $(VENV)/.dev
	METHODS="$(METHODS)" SUITE="$(SUITE)" tests/peft_suite/run $(BIN)/python -n $(JOBS)

# The smoke tests with the oldest and with the newest packages of the declared ranges.
ends:
	PYTHON="$(PYTHON)" .ci/ends oldest
	PYTHON="$(PYTHON)" .ci/ends newest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint types docs test

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache

# .venv/.demo and .venv/.dev say that the extra of that name is installed as pyproject.toml asks.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "Installing subspace-tuning[$*] into $(VENV): minutes the first time"
	$(PIP) install "$(TORCH)"
	$(PIP) install --editable ".[$*]"
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
