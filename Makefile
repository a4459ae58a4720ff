# `make` alone lists the targets. Each one sets up what it needs first.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help setup demo serve test prove lint fmt bench screenshots lock clean

# Left over from another project, these would send every python below to the wrong library.
unexport PYTHONHOME PYTHONPATH

python := .venv/bin/python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

setup: ## make or update .venv from the locked dependencies
	@bin/setup

# Recipes that serve end in `exec`: make passes SIGTERM on to its own child only, so no shell may stand in between.
# PORT and ONCE given to make reach the programs through the environment, as make does with all its arguments.
demo: setup ## draw one image with each model, then keep serving; PORT=8000, ONCE=1 exits after the table
	@exec $(python) bin/demo

serve: setup ## migrate, then gunicorn and the worker in the foreground, settings from the environment
	@exec bin/serve

test: lint ## lint, then the whole suite on SQLite and on PostgreSQL with Redis; ARGS="-k name" goes to pytest
	@exec $(python) -m tests.run $(ARGS)

prove: setup ## every proof of money, the long ones too, a line each; ARGS="month races" for some
	@exec $(python) -m tests.prove $(ARGS)

# The linters load the settings. They get fixed ones, so that neither a .env file nor the shell changes the verdict
# and no database file is made; the last line checks the settings as a production site would have them.
lint: export SECRET_KEY = lint
lint: export DEBUG = false
lint: export DATABASE_URL = sqlite://:memory:
lint: export REDIS_URL =
lint: setup ## formatting, ruff, mypy, import rules, missing migrations, deployment checks
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && export DATA_DIR="$$tmp" && set -x && \
	$(python) -m ruff format --check --quiet . && \
	$(python) -m ruff check --quiet . && \
	$(python) -m mypy geekhub accounts billing images && \
	.venv/bin/lint-imports --no-logo && \
	$(python) manage.py makemigrations --check --dry-run && \
	SECRET_KEY=$$($(python) -c 'import secrets; print(secrets.token_urlsafe(45))') \
	    ALLOWED_HOSTS=example.com PUBLIC_URL=https://example.com EMAIL_URL=smtp://mail.example.com \
	    $(python) manage.py check --deploy --fail-level WARNING

fmt: setup ## format the code and apply ruff's safe fixes
	@$(python) -m ruff check --fix --exit-zero --quiet . && $(python) -m ruff format .

bench: setup ## the benchmarks; ARGS go to them
	@exec $(python) -m benchmarks $(ARGS)

screenshots: setup ## take every page, light and dark, phone and desktop; ARGS=DIR says where to
	@exec $(python) -m tests.screenshots $(ARGS)

# Without UPGRADE=1 the versions already locked are kept wherever pyproject.toml still allows them.
lock_sets = .venv/bin/uv pip compile -q --no-header --no-annotate --no-emit-index-url --generate-hashes \
    --universal --python-version 3.12 $(if $(UPGRADE),--upgrade)
lock_command = $(lock_sets) pyproject.toml
lock: setup ## recompile the lock files, ours and those of the clients for tests; UPGRADE=1 takes the newest versions
	@$(lock_command) -o requirements.lock
	@$(lock_command) --extra dev -c requirements.lock -o requirements-dev.lock
	@for set in first second newest; do $(lock_sets) tests/clients/$$set.in -o tests/clients/$$set.lock || exit; done

clean: ## remove .venv and all that tools leave behind; var/, where the data is, stays
	@rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis .coverage htmlcov \
	    tests/node/node_modules tests/clients/.installed
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
