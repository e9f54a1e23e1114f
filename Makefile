# Everything here works on a machine with Python 3.11+, pip, make and git, and installs what it needs into .venv.
# The other end of the versions: make test PYTHON=python3.13 VENV=.venv-newest CONSTRAINTS=constraints-newest.txt EXTRAS=test,buckets,pictures
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= test,hf,buckets,eval,pictures
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: demo albert test lint install clean
.DEFAULT_GOAL := help
help:
	@echo "make demo   prepare text, train a small GPT-Neo on 8 fake devices, sample from it (about 5 minutes)"
	@echo "make albert pre-train a small ALBERT on docstrings, and fine-tune it on a few labels (minutes)"
	@echo "make test   install what the tests need and run them"
	@echo "make lint   check format, style and types"
	@echo "make clean  remove the environments and the demo"

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# A stamp per set of packages: nothing is installed again until a version changes.
$(VENV)/.installed: $(BIN)/pip pyproject.toml $(CONSTRAINTS)
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.installed-lint: $(VENV)/.installed
	$(PIP) --editable '.[lint]'
	@touch $@

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

albert: $(VENV)/.installed
	$(BIN)/python examples/albert.py

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .venv-newest demo
