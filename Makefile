# Every target installs what it needs into .venv first: Python 3.11 or newer and make are enough.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help leaderboard test lint test-slow test-mutation clean

help:
	@echo "make leaderboard    the quick protocol: certificates, costs, tasks, page (20 minutes on 2 cores)"
	@echo "make test           the fast test suite"
	@echo "make lint           ruff and mypy"
	@echo "make test-slow      tests that take minutes"
	@echo "make test-mutation  one changed sign in each mechanism must fail its certificate"

$(INSTALLED): pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(INSTALLED)

leaderboard: $(INSTALLED)
	$(BIN)/cab leaderboard protocol=quick

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --ignore=tests/mutation

test-mutation: $(INSTALLED)
	$(BIN)/python -m pytest -m slow tests/mutation

clean:
	rm -rf .venv build dist *.egg-info
