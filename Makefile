# Everything runs in a virtual environment of its own, made by these targets; nothing else needs to be prepared.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint $(CONSTRAINTS)

.PHONY: demo test core torture bench docs lint types check clean

demo: $(VENV)/demo.stamp  ## train on real data, see what is kept and why, survive a SIGKILL
	$(BIN)/python examples/demo.py

test: $(VENV)/dev.stamp  ## the whole test suite
	$(BIN)/python -m pytest -m "not torture" --numprocesses auto

core: $(VENV)/dev.stamp  ## the decisions alone: pure, without torch, every branch covered
	$(BIN)/python -m pytest tests/core -m "not torture" --cov --cov-config=tests/core/coverage.toml --cov-report=term-missing

torture: $(VENV)/dev.stamp  ## the long crash and size tests
	$(BIN)/python -m pytest -m torture

bench: $(VENV)/bench.stamp  ## what saves and restores cost, beside every peer and the machine's limits: benchmarks/RESULTS.md
	$(BIN)/python benchmarks/run.py

docs: $(VENV)/dev.stamp  ## the reference of the command line, and the README's pictures, made of the commands themselves
	$(BIN)/python docs/generate_cli.py
	$(BIN)/python docs/generate_pictures.py

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

check: lint types core test  ## what CI runs

clean:
	rm -rf $(VENV)

# torch comes first and by its exact version, so that a CPU build is taken where the machine offers one.
$(VENV)/torch.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; give one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) torch
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP_INSTALL) --editable '.[demo]'
	touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

$(VENV)/bench.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP_INSTALL) --editable '.[bench]'
	touch $@
