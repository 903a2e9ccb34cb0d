# A fresh machine needs Python 3.11 or newer and make; `make demo` and `make test` do the rest.
PYTHON ?= python3
UV := $(or $(wildcard .venv/bin/uv),uv)

.DEFAULT_GOAL := help
.PHONY: help demo test thorough check format triton lab app lock clean

help:  ## this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1	/' | expand -t 14

# The stamp is written last. Without it .venv is unfinished, perhaps broken, and is made anew;
# with it, but older than the lists, only the changes are installed.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "bold_audio needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not there). Name another: make PYTHON=/path/to/python3.11"; exit 1; }
	@if test -e $@; then rm $@; \
	  echo "pyproject.toml or constraints.txt changed: bringing .venv up to date, a quarter of a minute or more."; \
	else \
	  echo "Installing the packages of constraints.txt into .venv: 2 to 3 minutes, 2.6 GB on disk (a CUDA torch: 2.7 GB more to download)."; \
	  $(PYTHON) -m venv --clear .venv; \
	fi
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/installed  ## simulate a full-size subject (once) and run notebooks 00 to 06 on it
	.venv/bin/bold-audio run --subject sim
	@echo "Report: outputs/sim/sub-sim/report/index.html"

# Two processes with one thread each; more of them would want 2 GiB each. By files, since the groups of pytest-xdist 3.8
# are without effect, and without a word, under pytest 9.2.
PYTEST := OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: .venv/installed  ## the tests, but for those of make thorough
	$(PYTEST) -m 'not thorough' --durations 30

thorough: .venv/installed  ## the tests that take minutes: planted answers, kills, a real Triton, WebDAV, browsers, DVC
	$(PYTEST) -m thorough --durations 30

check: .venv/installed  ## format, lint, import layers, fast tests
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/lint-imports
	$(PYTEST) -q -m 'not slow and not thorough'

format: .venv/installed  ## put code and notebooks into the common format
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

triton: .venv/installed  ## serve triton_models on this machine by a Triton server without Docker (installs it once)
	.venv/bin/bold-audio serve

lab: .venv/installed  ## JupyterLab on this machine only
	.venv/bin/jupyter lab --ip=127.0.0.1

app: .venv/installed  ## the slice viewer as a page, on this machine only (the address with its token is shown)
	JUPYTER_PATH="$(CURDIR)/notebooks/app" .venv/bin/voila notebooks/app/viewer.ipynb --template=bold_audio \
	  --Voila.ip=127.0.0.1 --Voila.auto_token=True $(ARGS)

lock:  ## after a change in pyproject.toml: write uv.lock and constraints.txt (ARGS=--upgrade for newer versions)
	$(UV) lock --no-config --python 3.11 $(ARGS)
	$(UV) export --no-config --frozen --all-extras --no-hashes --no-emit-project --no-annotate -q -o constraints.txt

clean:  ## remove .venv and caches, never data or outputs
	rm -rf .venv .triton .pytest_cache .ruff_cache .import_linter_cache *.egg-info
	find . \( -path ./data -o -path ./outputs \) -prune -o -name __pycache__ -prune -exec rm -rf {} +
