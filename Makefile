# Everything sets itself up: a machine with Python 3.11+ (venv, pip) and make needs nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
# One thread a process is fastest for nets of this size; tests and seeds run side by side instead.
export OMP_NUM_THREADS := 1

.PHONY: install demo test lint bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet \
		--constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

demo: install
	$(BIN)/python examples/demo.py

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -rs

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv runs
