# Thin targets: each one makes sure that .venv is up to date, then runs one command.
#   make test ARGS="-k attention"     passes further arguments on
#   make demo PYTHON=python3.12       builds .venv with that Python instead of the first suitable one
#   make install EXTRAS=dev,cuda      installs further extras of pyproject.toml

ARGS ?=
EXTRAS ?= dev
PY := .venv/bin/python
INSTALLED := .venv/installed-$(EXTRAS)

DEMO := run causal_mask --profile=demo

# Compiled programs, however small, are kept between runs and shared by the test workers.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.DEFAULT_GOAL := help
.PHONY: help install demo test lint soak bench

help:  ## show this list
	@sed -n 's/^\([a-z]*\): .*## /\1@/p' Makefile | awk -F@ '{ printf "  make %-9s %s\n", $$1, $$2 }'

install: $(INSTALLED)  ## create .venv and install the tested versions into it

demo: $(INSTALLED)  ## ask one question: train both arms, judge, write the page; about two minutes
	$(PY) -m ablations $(DEMO) $(ARGS)

# Work is stolen at the end only, so the tests of a file stay together and share their fixtures and compiled programs.
# The commands that tests start find this project's modules compiled, also where the caller's Python writes none.
test: export PYTHONDONTWRITEBYTECODE =
test: $(INSTALLED)  ## run every test that takes seconds
	$(PY) -m pytest -n 2 --dist=worksteal -q tests $(ARGS)

lint: $(INSTALLED)  ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

soak: $(INSTALLED)  ## run the tests that take minutes; results go to tests/soak.json
	$(PY) -m pytest -q -m soak --timeout=3600 --record-soak tests $(ARGS)

bench: $(INSTALLED)  ## measure speed and memory on the CPU, write benchmarks/RESULTS.md
	$(PY) -m benchmarks.results --run $(ARGS)

$(INSTALLED): pyproject.toml requirements/lock.txt
	@sh requirements/install.sh $(EXTRAS) $(PYTHON)
