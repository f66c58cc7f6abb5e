# TacoMamba. `make help` lists the targets; all of them work from a fresh clone and repeat no finished installation.
#   make demo
#   make test PYTHON=/opt/python3.12/bin/python3
#   make env TORCH_INDEX=https://download.pytorch.org/whl/cpu

VENV := .venv
PY := $(VENV)/bin/python
INSTALL := -m pip --disable-pip-version-check install

# The environment of the tests: sees the packages of .venv, and has those that only lint and tests need.
TESTS := .venv-test
TEST_PY := $(TESTS)/bin/python

# Two processes, each with one thread (tests/conftest.py); a file's tests stay together, since they share what they make.
PARALLEL := -n 2 --dist loadfile

# Which interpreter makes .venv: by default the first of these that runs and is Python 3.11 to 3.13 with venv and pip.
PYTHON ?=
CANDIDATES := python3 python3.12 python3.11 python3.13 python
CHECK := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# A package index to take torch from, and nothing else; by default torch comes from where pip takes everything.
TORCH_INDEX ?=
TORCH := $(shell grep '^torch==' requirements.txt)

# A folder of wheels that `make test-gpu` unpacks for its run, where nothing can be installed.
WHEELS ?=

.PHONY: demo test test-slow test-bare test-studies test-gpu env lint format clean help missing

help:
	@echo "make demo         sets up .venv, then recognition and text to mel on synthetic speech; ends with a table"
	@echo "make test         sets up .venv and .venv-test, then lint and the tests that are not slow"
	@echo "make test-slow    the tests of benchmarks/studies, the long tests, those of random inputs with 200 seeds, Triton"
	@echo "make test-bare    the tests that are not slow again: no compiler on the path, stray files in the checkout"
	@echo "make test-studies the tests of benchmarks/studies"
	@echo "make test-gpu     with PYTHON or python3 as it is, no .venv: tests, trainings and timings on a GPU, 8 minutes"
	@echo "make env          sets up .venv for users: requirements.txt and requirements-demo.txt"
	@echo "make lint         ruff check and ruff format --check"
	@echo "make format       ruff format, and the fixes that ruff makes itself"
	@echo "make clean        removes .venv, .venv-test, caches, and what make demo made; no other data and no other runs"
	@echo "PYTHON=...        the Python 3.11 to 3.13 that makes .venv"
	@echo "TORCH_INDEX=...   the package index that torch comes from"
	@echo "WHEELS=...        a folder of wheels that test-gpu takes what is missing from"

demo: env
	$(PY) -m utils.demo

test: lint
	$(TEST_PY) -m pytest $(PARALLEL) -m "not slow"

test-slow: test-studies
	$(TEST_PY) -m pytest $(PARALLEL) -m slow
	TRITON_INTERPRET=1 $(TEST_PY) -m pytest -n 2 tests/triton_kernels tests/test_triton_backend.py
	$(TEST_PY) -m pytest -n 2 -m "drawn or hypothesis" --seeds 200

test-bare: $(TESTS)/.dev
	tests/bare.sh $(TEST_PY) $(PARALLEL) -m "not slow"

test-studies: $(TESTS)/.dev
	$(TEST_PY) -m pytest $(PARALLEL) benchmarks/studies/tests

test-gpu:
	$(or $(PYTHON),python3) benchmarks/gpu.py $(if $(WHEELS),--wheels "$(WHEELS)")

env: $(VENV)/.demo

lint: $(TESTS)/.dev
	$(TEST_PY) -m ruff check .
	$(TEST_PY) -m ruff format --check .

format: $(TESTS)/.dev
	$(TEST_PY) -m ruff check --fix-only .
	$(TEST_PY) -m ruff format .

clean:
	rm -rf $(VENV) $(TESTS) .pytest_cache .ruff_cache .hypothesis data/raw/demo data/processed/demo runs/demo \
	  data/raw/demo-voice data/processed/demo-voice runs/demo-voice
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Installations. Each stamp is as old as its requirement file's last installation.
$(TESTS)/.dev: requirements-dev.txt requirements-eval.txt requirements-export.txt $(VENV)/.demo $(TESTS)/.made
	$(TEST_PY) $(INSTALL) -r requirements-dev.txt -r requirements-eval.txt -r requirements-export.txt
	@touch $@

# The path in users.pth is relative, so that a checkout can move.
$(TESTS)/.made: $(VENV)/.made
	$(PY) -m venv --clear $(TESTS)
	cd $(TESTS)/lib/python3.* && echo "../../../../$(VENV)/lib/$${PWD##*/}/site-packages" > site-packages/users.pth
	@touch $@

$(VENV)/.demo: requirements-demo.txt $(VENV)/.base
	$(PY) $(INSTALL) -r requirements-demo.txt
	@touch $@

$(VENV)/.base: requirements.txt $(VENV)/.made
	@echo "Installing requirements.txt into $(VENV): torch is large, so this takes a few minutes."
	$(if $(TORCH_INDEX),$(PY) $(INSTALL) --no-deps --index-url "$(TORCH_INDEX)" "$(TORCH)")
	$(PY) $(INSTALL) -r requirements.txt
	@touch $@

# A .venv whose Python has gone (an upgrade, a copy from another machine) is made again, and one that works is kept.
# Candidates are run, not looked up: a name on PATH may be a shim that fails, or a Python without venv.
$(VENV)/.made: $(shell test -x $(PY) || echo missing)
	@if $(PY) -c '$(CHECK)' >/dev/null 2>&1 && $(PY) -m pip --version >/dev/null 2>&1; then touch $@; exit 0; fi; \
	set -- $(if $(PYTHON),"$(PYTHON)",$(CANDIDATES)); \
	for python in "$$@"; do \
	  if "$$python" -c '$(CHECK)' >/dev/null 2>&1; then \
	    echo "Making $(VENV) with $$("$$python" -c 'import sys; print(sys.version.split()[0], sys.executable)')"; \
	    "$$python" -m venv --clear $(VENV) && touch $@; exit; \
	  fi; \
	done; \
	echo "No Python 3.11 to 3.13 with venv and pip was found (tried: $$*); install one (on Debian and Ubuntu: python3" \
	  "and python3-venv) or name one with PYTHON=..." >&2; \
	exit 2
