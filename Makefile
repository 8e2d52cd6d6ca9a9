# Everything a checkout needs, from an empty machine: `make demo` or `make test` set up .venv by themselves.
PYTHON ?= python3
ARGS ?=
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
MINIMUM := 3.11
HARNESS := .venv-lmms
HARNESS_STAMP := $(HARNESS)/.setup-done

OMP_NUM_THREADS ?= 2
export OMP_NUM_THREADS
# Waiting threads sleep: where cores are shared, spinning ones cost a replay several times its wall time.
OMP_WAIT_POLICY ?= PASSIVE
export OMP_WAIT_POLICY
# Keeps the working folder off sys.path, so that a bare `import envs` can never work by accident.
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup lmms demo lint format test fast clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST)

setup: $(STAMP) ## Create .venv with the package and all it needs (again only when pyproject.toml or constraints.txt change)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "foveate needs Python $(MINIMUM) or newer, and '$(PYTHON)' is not: run make with PYTHON=/path/to/python$(MINIMUM)" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	# torch by itself first: where a CPU build of this version lies on disk, pip takes it and pulls no CUDA packages
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

lmms: $(HARNESS_STAMP) ## Create .venv-lmms: the harness lmms-eval over .venv, as docs/lmms.md uses it

$(HARNESS_STAMP): $(STAMP) requirements-lmms.txt
	$(BIN)/python -m venv --without-pip $(HARNESS)
	# sees all of .venv, the editable install included; nothing in .venv changes
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  > "$$($(HARNESS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(BIN)/pip --python $(HARNESS)/bin/python install --quiet --no-deps --no-compile -r requirements-lmms.txt
	@touch $@

demo: $(STAMP) ## Run the whole pipeline, small, on the embedded model
	$(BIN)/foveate demo $(ARGS)

lint: $(STAMP) ## Check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Put every file into the format that lint checks
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

test: lint $(HARNESS_STAMP) ## Check style and format, then run every test, JOBS files at a time (ARGS="-k name" narrows)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

fast: $(STAMP) ## Run the quick tests
	$(BIN)/python -m pytest -m fast $(ARGS)

clean: ## Remove what builds and tests leave behind (.venv stays)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
