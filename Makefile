# Everything here works on a fresh Debian machine with Python 3.11 or later and cargo.
# The locks name no registry: pip takes its index from the machine's own configuration.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV ?= uv
COMPILE := $(UV) pip compile pyproject.toml --extra build --generate-hashes --no-header --no-emit-index-url \
  --universal --python-version 3.11 -q
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help run test check soak bench format lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

run: $(VENV)/.run ## serve crates.io on 127.0.0.1:8080; ARGS="..." for more
	@$(BIN)/holdfast serve $(ARGS)

test: $(VENV)/.dev $(VENV)/.servers ## the test suite (10 minutes at most)
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

check: $(VENV)/.dev ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/.dev ## loops and scale: what takes longer than a test may
	$(BIN)/python -m pytest tests/soak --soak -p no:randomly $(ARGS)

bench: $(VENV)/.dev ## speed, side by side with the peers that are installed
	$(BIN)/python -m benchmarks $(ARGS)

format: $(VENV)/.dev ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## write the two lock files anew from pyproject.toml; ARGS=--upgrade takes newer versions
	@command -v $(UV) >/dev/null || { echo "the locks are written by uv: install it, or set UV=" >&2; exit 1; }
	$(COMPILE) -o requirements.lock $(ARGS)
	$(COMPILE) --extra dev -o requirements-dev.lock $(ARGS)

clean: ## remove the virtual environment and the tools' caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist

# A Debian without python3-venv has a venv module that cannot install pip: say which package is missing.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "holdfast needs Python 3.11 or later; set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && apt-get install -yq python3-venv && $(PYTHON) -m venv $(VENV); } \
	  || { rm -rf $(VENV); echo "cannot make a virtual environment: install the package python3-venv" >&2; exit 1; }

$(VENV)/.run: $(BIN)/python requirements.lock pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# The servers that some tests put in front. Unpacked, not installed: nothing is started by it.
$(VENV)/.servers: $(BIN)/python
	@command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || { \
	  { [ "$$(id -u)" != 0 ] || apt-get update -qq; } && cd $(VENV) && apt-get download -qq nginx \
	  && dpkg-deb -x nginx_*.deb servers && rm nginx_*.deb; } \
	  || { echo "the tests need nginx: install the package nginx" >&2; exit 1; }
	@touch $@

$(VENV)/.dev: $(BIN)/python requirements-dev.lock pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ $(VENV)/.run
