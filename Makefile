# Every target sets up what it needs in .venv by itself.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OLDEST_READY := $(OLDEST)/.ready

# Each core takes a file of tests at a time.
PYTEST := -m pytest --numprocesses logical --dist loadfile
# The tests of these reach kernels: made again on CPU tensors by Triton's interpreter.
INTERPRETED := tests/kernels tests/nn tests/surgery
TWINS := $(CURDIR)/build/twins
SERVED := not LightningEnsemble and not command_line
OF_LIGHTNING := tests/callbacks tests/mixins tests/modules tests/plugins tests/test_second_fit.py

.PHONY: demo test test-full test-oldest lint format docs bench clean

demo: $(READY)
	$(BIN)/python examples/digits.py

test: $(READY)
	$(BIN)/python $(PYTEST)
	TRITON_INTERPRET=1 $(BIN)/python $(PYTEST) $(INTERPRETED)

# Also the machine code of every kernel for all generations of GPU, by both supported compilers, and
# the tests of what needs Lightning in the names of its other package.
test-full: $(READY) $(OLDEST_READY)
	$(BIN)/python $(PYTEST) --full
	TRITON_INTERPRET=1 $(BIN)/python $(PYTEST) --full $(INTERPRETED)
	$(OLDEST)/bin/python $(PYTEST) --full tests/test_machine_code.py
	$(BIN)/python -m tests.twins $(TWINS)
	cd $(TWINS) && PYTHONPATH=. $(CURDIR)/$(BIN)/python $(PYTEST) $(OF_LIGHTNING) -k "$(SERVED)"

test-oldest: $(OLDEST_READY)
	$(OLDEST)/bin/python $(PYTEST)
	TRITON_INTERPRET=1 $(OLDEST)/bin/python $(PYTEST) $(INTERPRETED)

lint: $(READY)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: $(READY)
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

# Into build/docs. A warning is an error, and so is a reference to nothing.
docs: $(READY)
	rm -rf docs/api/generated
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky docs build/docs

# Without ARGS what this machine can; `make bench ARGS=--help` lists the rest.
bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) $(OLDEST) runs dist build .mypy_cache .pytest_cache .ruff_cache

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[clients,dev]'
	touch $@

# The oldest supported stack, to prove the lower bounds in pyproject.toml. Triton 3.6's interpreter
# (not its compiler) needs a NumPy that still turns arrays of one element into scalars.
$(OLDEST_READY): pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check --editable '.[clients,dev]' \
		'torch==2.11.*' 'torchvision==0.26.*' 'triton==3.6.*' 'lightning==2.6.0' 'pytorch-lightning==2.6.0' \
		'numpy<2.4'
	touch $@
