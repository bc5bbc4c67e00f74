# The course in one command: `make`. `make help` lists the others.

PYTHON ?= $(shell command -v python3.11 || command -v python3)

# An environment of your own, such as `make test VENV=/opt/envs/course`, is used as it is; otherwise .venv is made.
ifneq ($(filter environment command,$(origin VENV)),)
  GIVEN := $(wildcard $(VENV)/bin/python)
endif
VENV ?= .venv
PY := $(abspath $(VENV))/bin/python
STAMP := $(VENV)/.course-is-installed
READY := $(or $(wildcard $(STAMP)),$(GIVEN),$(STAMP))

BOOK := $(dir $(PY))jupyter-book build . --path-output . -W --keep-going
# Tests and chapters run side by side, one file a process; each process computes in one thread.
JOBS ?= 2
NBVAL := -n $(JOBS) --dist loadfile --nbval --nbval-current-env --nbval-cell-timeout=900 --nbval-kernel-startup-timeout=180

.DEFAULT_GOAL := all
.NOTPARALLEL:
.PHONY: all setup phantom run book test bench clean help

all: setup phantom run book  ## set up, make the phantom, execute the chapters, render the site (only what is not done yet)

setup: $(READY)  ## make the Python environment in .venv (downloads PyTorch the first time)

$(STAMP): requirements.txt pyproject.toml
	@echo "== Python environment in $(VENV)"
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed; name one with 'make PYTHON=/path/to/python3.11'" >&2; exit 1; }
	@test -x "$(PY)" || "$(PYTHON)" -m venv "$(VENV)"
	"$(PY)" -m pip install --disable-pip-version-check -r requirements.txt
	@touch "$@"

phantom: $(READY)  ## make the artificial patients of the demo (a minute or two, once)
	@echo "== Phantom"
	@"$(PY)" -m brainlib data phantom

run: $(READY) phantom  ## execute the chapters that this machine has not executed yet
	@echo "== Chapters"
	@"$(PY)" -m brainlib run --here

book: $(READY)  ## render the committed chapters to _build/html/index.html (seconds)
	@echo "== Book"
	@$(BOOK)

test: $(READY)  ## what CI runs: style, phantom, strict book, all tests with the chapters run anew
	@failed=""; \
	stage() { name="$$1"; shift; printf '\n== %s\n' "$$name"; "$$@" || failed="$$failed, $$name"; }; \
	stage "Style" "$(PY)" -m ruff check .; \
	stage "Format" "$(PY)" -m ruff format --check .; \
	stage "Phantom" "$(PY)" -m brainlib data phantom; \
	stage "Book" $(BOOK) -q; \
	stage "Tests of the library and the site, and the chapters with nbval" \
	  env PYTHONHASHSEED=0 OMP_NUM_THREADS=1 "$(PY)" -m pytest $(NBVAL) tests chapters; \
	if [ -n "$$failed" ]; then echo "failed: $${failed#, }" >&2; exit 1; fi

bench: $(READY)  ## measure speed (leave the machine idle meanwhile)
	@"$(PY)" -m brainlib bench

clean:  ## remove what is built from the sources (the environment and the data stay)
	rm -rf _build build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './.git/*' -prune -exec rm -rf {} +

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
