# make demo      the whole pipeline on a small phantom cohort, from NIfTI to a Dice score and a report page
# make test      ruff, mypy and the tests      make soak    the tests that take minutes
# make soak-release   a release under bids-validator and mlcroissant, which it installs beside the environment
# make install   the environment alone         make format  ruff's formatter and fixes
# make clean     removes what is built here, never work/
#
# PYTHON=python3.12   another interpreter (3.11 or newer)
# PIP_ARGS="..."      given to pip, for an index or a torch of your own, for example
#                     make demo PIP_ARGS="--index-url YOUR_INDEX"
# EXTRAS=test         without the mpich wheel, where the site's own MPI is to be used

PYTHON ?= python3
PIP_ARGS ?=
EXTRAS ?= mpich,test
VENV := .venv
STAMP := $(VENV)/.installed
export OMP_NUM_THREADS ?= 1
# Another project's environment must not shine through.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

# An environment that was moved or copied here points elsewhere, so it is made anew.
INSTALLED_FOR := $(CURDIR) $(EXTRAS)
ifneq ($(strip $(shell cat $(STAMP) 2>/dev/null)),$(INSTALLED_FOR))
.PHONY: $(STAMP)
endif

.PHONY: help install demo test soak first-half second-half soak-release format clean
help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

install: $(STAMP)

demo: $(STAMP)
	@$(VENV)/bin/python launch/demo.py

test: $(STAMP)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	$(VENV)/bin/python -m mypy
	$(HALVES) MARK="not soak"

# Two halves of the tests at a time, which two cores run in three quarters of the time: one waits while the other works.
# Their lines come whole (sed), as they are written; one that fails fails the command.
FIRST := $(addprefix tests/,evaluation runtime tools training workflow)
PYTEST = set -o pipefail; $(VENV)/bin/python -u -m pytest -q --durations=15 -m "$(MARK)"
HALVES := $(MAKE) --no-print-directory -j2 -k first-half second-half
first-half second-half: SHELL := bash
first-half:
	@$(PYTEST) $(FIRST) 2>&1 | sed -u ''
second-half:
	@$(PYTEST) $(FIRST:%=--ignore=%) 2>&1 | sed -u ''

format: $(STAMP)
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

soak: $(STAMP)
	$(HALVES) MARK=soak FIRST="$(addprefix tests/,evaluation runtime tools workflow)"

TOOLS := $(VENV)/release-tools
soak-release: $(STAMP)
	test -x $(TOOLS)/bin/mlcroissant || { "$(PYTHON)" -m venv $(TOOLS) && \
	  $(TOOLS)/bin/python -m pip install --disable-pip-version-check -q mlcroissant bids-validator-deno $(PIP_ARGS); } || true
	RELEASE_TOOLS="$(CURDIR)/$(TOOLS)/bin" $(VENV)/bin/python -m pytest -q -rs tests/release/test_tools.py

# First the one line a user needs when Python is missing, too old, or cut in parts as Debian does it.
$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "error: $(PYTHON) is not installed: sudo apt install python3 python3-venv, or say PYTHON=/path/to/python3" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is `"$(PYTHON)" -V 2>&1`, Python 3.11 or newer is needed: install one and say PYTHON=python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) lacks venv: sudo apt install python3-venv" >&2; exit 2; }
	@test "`$(VENV)/bin/python -c 'import pip, sys; print(sys.prefix)' 2>/dev/null`" = "$(CURDIR)/$(VENV)" \
	  || "$(PYTHON)" -m venv --clear $(VENV)
	@echo "installing into $(VENV), once: some minutes"
	$(VENV)/bin/python -m pip install --disable-pip-version-check -q -e ".[$(EXTRAS)]" -c constraints.txt $(PIP_ARGS)
	@echo "$(INSTALLED_FOR)" > $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
