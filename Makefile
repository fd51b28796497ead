# Everything sets itself up: a machine with Python 3.11+ (venv, pip) and make needs nothing else.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
LOWEST := .venv-lowest/bin/python
CLIENTS := .venv-clients/bin/python
PYTHONS ?= python3.11 python3.12 python3.13
# One thread a process is fastest for nets of this size; tests and seeds run side by side instead.
export OMP_NUM_THREADS := 1

.PHONY: install demo test test-fast coverage test-adversarial test-lowest test-pythons test-python \
	test-clients lint bench clean

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

# The share of lines that most modules reach; fails below the floor in pyproject.toml.
coverage: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow" --cov --cov-report=term:skip-covered

# Most modules, for the hand.
test-fast: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -q -m "not slow"

# Changed files, full disks, odd names, kills and random actions, far more than in `make test`.
test-adversarial: install
	$(BIN)/python -m pytest -n 2 -q -s tests/adversarial --mutations 5000

# The oldest versions that pyproject.toml allows: the environments, and one short run.
test-lowest: .venv-lowest/installed
	PYTHONPATH=. $(LOWEST) -m pytest -n 2 -q tests/test_env_contract.py
	rm -rf .venv-lowest/run
	PYTHONPATH=. $(LOWEST) -m agents.cli train --env HTM-Trees-v0 --algo reinforce \
		--merges 2000 --out .venv-lowest/run

.venv-lowest/installed: pyproject.toml constraints.txt tests/lowest.py
	$(PYTHON) -m venv .venv-lowest
	$(PYTHON) tests/lowest.py > .venv-lowest/pins.txt
	$(LOWEST) -m pip install --quiet --only-binary :all: --requirement .venv-lowest/pins.txt
	$(LOWEST) -m pip install --quiet --no-deps --editable .
	touch .venv-lowest/installed

# The same under other versions of Python, those that this machine has.
test-pythons:
	@for python in $(PYTHONS); do \
		if $$python --version > /dev/null 2>&1; \
		then $(MAKE) --no-print-directory test-python PYTHON=$$python || exit 1; \
		else echo "$$python is not on this machine"; fi; \
	done

test-python:
	rm -rf .venv-other
	$(PYTHON) -m venv .venv-other
	.venv-other/bin/python -m pip install --quiet --constraint constraints.txt --editable . \
		beartype hypothesis moviepy pytest pytest-timeout pytest-xdist
	.venv-other/bin/python -m pytest -n 2 -q tests/test_env_contract.py
	.venv-other/bin/python -m agents.cli train --env HTM-Trees-v0 --algo reinforce --merges 2000 \
		--out .venv-other/run
	rm -rf .venv-other

# The examples of clients, with those libraries that are too heavy for everybody or ask for versions
# that are not in constraints.txt.
test-clients: .venv-clients/installed
	HTM_NEEDS_CLIENTS=1 $(CLIENTS) -m pytest -q -rs tests/test_clients.py tests/test_wrappers.py

.venv-clients/installed: pyproject.toml examples/clients/constraints.txt
	$(PYTHON) -m venv .venv-clients
	$(CLIENTS) -m pip install --quiet --constraint examples/clients/constraints.txt \
		--editable '.[clients]' beartype hypothesis pytest pytest-timeout
	touch .venv-clients/installed

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-lowest .venv-other .venv-clients .venv-originals runs
