# make demo   install (once) and run a whole defence offline, on the embedded guide
# make test   install (once), then format check, lint, types, layers and tests
# make test-gpu   on a machine with a GPU: what the others cannot check; needs torch, no network, no install
# make docs   the documentation site, with its notebooks run anew
# make coverage, make mutants   how good the tests are: branch coverage, and faults put into the maths
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
BIN := $(VENV)/bin
COVERED = $(addprefix tests/test_,$(addsuffix .py,sources sources_arrays catalog sources_parquet parquet_process tar writer \
  decode decode_workers limits provenance faults locks run_folder run_folder_faults run_files))
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable

.DEFAULT_GOAL := help
.PHONY: help demo test tests test-gpu lint format coverage mutants torture docs clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo     install into $(VENV) once, poison digits, scan, unlearn, write a report'
	@echo 'make test     install into $(VENV) once, then everything that CI runs'
	@echo 'make test-gpu  check what only a GPU shows, with $(PYTHON) and the torch that it has; installs nothing'
	@echo 'make tests    the tests only'
	@echo 'make lint     format check, ruff, mypy and import-linter only'
	@echo 'make coverage branch coverage of what meets hostile input and faults: data and runs'
	@echo 'make mutants  put faults into the entropy map, one at a time, and count those that no test sees'
	@echo 'make torture  kill a small defence at random moments and compare what it wrote to the byte'
	@echo 'make docs     the documentation site in site/, from pages, docstrings and notebooks that it runs; warnings are errors'
	@echo 'make format   format the sources and fix what ruff can fix'
	@echo 'make clean    remove $(VENV) and caches; runs/ stays'
	@echo 'Another interpreter: make demo PYTHON=python3.12'

demo: $(VENV)/.installed-demo
	$(BIN)/clipguard demo --out $(RUN)
	@test -s $(RUN)/report.html || { echo 'error: the demo wrote no $(RUN)/report.html' >&2; exit 1; }
	@echo 'Report: $(abspath $(RUN))/report.html'

test: lint tests

tests: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

# No environment of its own: whatever has torch will do. Eight minutes at most.
test-gpu:
	timeout 480 $(PYTHON) tools/gpu_check.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

coverage: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered $(COVERED)

mutants: $(VENV)/.installed-dev
	$(PIP_INSTALL) '.[mutation]'
	$(BIN)/mutmut run --max-children 1
	$(BIN)/mutmut export-cicd-stats && cat mutants/mutmut-cicd-stats.json
	$(BIN)/mutmut results

torture: $(VENV)/.installed-dev
	$(BIN)/python tools/kill_torture.py --rounds 20

# The notebooks train small nets: two minutes on two idle cores.
docs: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build --fail-on-warning --keep-going -q -c docs -d site/.doctrees . site/html
	@echo 'Site: $(abspath site)/html/index.html'

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) mutants site .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps are written last: an install that was cut short is done again, one that was finished never is.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing clipguard and PyTorch into $(VENV): several GB, some minutes, once.'
	$(PIP_INSTALL) '.[demo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing clipguard, PyTorch and the test tools into $(VENV): several GB, some minutes, once.'
	$(PIP_INSTALL) '.[dev,demo]'
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing clipguard, PyTorch and the tools of the documentation into $(VENV): several GB, some minutes, once.'
	$(PIP_INSTALL) '.[docs]'
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'error: $(PYTHON) not found; install Python 3.11 or newer, or name one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: clipguard needs Python 3.11 or newer and $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	    'name another: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo 'error: $(PYTHON) cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
