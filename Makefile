# Every target sets up what it needs in .venv by itself.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST_READY := $(OLDEST)/.ready

# The suites in which the kernels themselves matter: run again on CPU tensors by Triton's interpreter.
INTERPRETED := tests/kernels tests/nn tests/surgery

.PHONY: demo test test-oldest lint format bench clean

demo: $(READY)
	$(BIN)/python examples/digits.py

# A file of tests on each core; those that measure time have the machine to themselves, and further
# tries, for whatever else the machine does only adds to it.
PARALLEL := --numprocesses auto --dist loadfile
TIMED := --reruns 3 tests/benchmarks

test: $(READY)
	$(BIN)/python -m pytest $(TIMED)
	$(BIN)/python -m pytest $(PARALLEL) --ignore tests/benchmarks
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(PARALLEL) $(INTERPRETED)

test-oldest: $(OLDEST_READY)
	$(OLDEST)/bin/python -m pytest $(TIMED)
	$(OLDEST)/bin/python -m pytest $(PARALLEL) --ignore tests/benchmarks
	TRITON_INTERPRET=1 $(OLDEST)/bin/python -m pytest $(PARALLEL) $(INTERPRETED)

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(READY)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Without ARGS what this machine can; `make bench ARGS=--help` lists the rest.
bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) $(OLDEST) runs dist .mypy_cache .pytest_cache .ruff_cache

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	touch $@

# The oldest supported stack, to prove the lower bounds in pyproject.toml. Triton 3.6's interpreter
# (not its compiler) needs a NumPy that still turns arrays of one element into scalars.
$(OLDEST_READY): pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --editable '.[dev]' \
		'torch==2.11.*' 'torchvision==0.26.*' 'triton==3.6.*' 'lightning==2.6.0' 'numpy<2.4'
	touch $@
