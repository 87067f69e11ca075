# Every target installs what it needs into .venv first: Python 3.11 or newer and make are enough.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help leaderboard test lint test-slow test-mutation test-browser test-cluster test-search screenshots support benchmark-zoo benchmark-cab2023 benchmark-statistics benchmark-tasks benchmark-dropin benchmark-report benchmark-backbones clean

help:
	@echo "make leaderboard    the quick protocol: certificates, costs, tasks, page (20 minutes on 2 cores)"
	@echo "make test           the fast test suite"
	@echo "make lint           ruff and mypy"
	@echo "make test-slow      tests that take minutes"
	@echo "make benchmark-zoo  time and memory of every mechanism at 1,024 to 8,192, forward and forward+backward (hours)"
	@echo "make benchmark-cab2023  CAB's efficiency lengths by our clock, to 8,192 (a quarter of an hour up to 4,096)"
	@echo "make benchmark-statistics  whether 95 % intervals of time ratios hold the truth (a quarter of an hour)"
	@echo "make benchmark-tasks  every task at size tiny with exact attention, beside its floors (10 minutes)"
	@echo "make benchmark-dropin  other attentions in trained models: the whole study (2 hours on 2 cores)"
	@echo "make benchmark-report  seconds and memory of a report of half a million records"
	@echo "make benchmark-backbones  parameters, FLOPs and memory of a step of every task's backbone at paper size"
	@echo "make screenshots    the pictures in docs/ of a page, in headless Chromium"
	@echo "make support        certificates of the whole zoo, and the generated tables in README.md and docs/"
	@echo "make test-cluster   sweeps on a real Ray and a real Slurm of one node (root, Debian)"
	@echo "make test-search    the property tests with cases that no run has drawn before"
	@echo "make test-browser   the page in real headless Chromium"
	@echo "make test-mutation  a seeded fault or a changed sign in a mechanism must fail its certificate"

$(INSTALLED): pyproject.toml setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(INSTALLED)

leaderboard: $(INSTALLED)
	$(BIN)/cab leaderboard protocol=quick

# One process per core; tests that start sweeps of two workers take a core more.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --ignore=tests/mutation

# Takes the Chromium of the machine (Debian: apt-get install chromium); another one with CHROMIUM=PATH.
test-browser: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python -m pytest -m browser

test-search: $(INSTALLED)
	$(BIN)/python -m pytest -m 'hypothesis and not slow and not gpu' --hypothesis-profile=search

# A real Ray and a real Slurm of one node, on this machine; needs root for Slurm.
test-cluster: $(INSTALLED)
	command -v slurmctld >/dev/null && command -v munged >/dev/null || apt-get install -y slurm-wlm munge
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest -m cluster tests/cluster

# Of the kept page of the quick board; of another one with PAGE=FILE.
PAGE ?= results/reference/quick/intel-xeon-2-cores/index.html
screenshots: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python docs/screenshots.py $(PAGE) "$${CHROMIUM:-$$(command -v chromium)}"

test-mutation: $(INSTALLED)
	$(BIN)/python -m pytest -m slow tests/mutation

support: $(INSTALLED)
	$(BIN)/cab check attentions=all matrix=results/reference/support.csv
	$(BIN)/python docs/tables.py

# The folder is shared with the records that stand there already, so that what was cut goes on.
benchmark-zoo: $(INSTALLED)
	$(BIN)/cab leaderboard protocol=zoo threads=2 results=results/reference

benchmark-cab2023: $(INSTALLED)
	$(BIN)/cab leaderboard protocol=cab2023 threads=2 results=results/reference

benchmark-statistics: $(INSTALLED)
	$(BIN)/python -m cab.measure.isolation_cost results/reference/statistics
	$(BIN)/python -m cab.report.interval_coverage results/reference/statistics
	$(BIN)/python -m cab.measure.calibration results/reference/statistics

# What cannot be fetched is a recorded gap, and no reason to stop.
benchmark-tasks: $(INSTALLED)
	-$(BIN)/cab run -m 'task=glob(*)' attention=softmax protocol=tasks threads=2 results=results/reference
	$(BIN)/python docs/tables.py

# One thread for all: a run and its costs are of one machine only with the same threads. What trains shares the cores;
# what is timed has them alone.
benchmark-dropin: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[joblib]'
	$(BIN)/cab dropin experiment=smyrf_dropin threads=1 results=results/reference hydra/launcher=joblib hydra.launcher.n_jobs=2
	$(BIN)/python docs/tables.py

benchmark-report: $(INSTALLED)
	$(BIN)/python -m cab.report.benchmark results/reference/report

benchmark-backbones: $(INSTALLED)
	$(BIN)/python -m cab.measure.backbones results/reference/backbones

clean:
	rm -rf .venv build dist *.egg-info
