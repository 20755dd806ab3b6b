# make solve   install into .venv and plan the shipped example
# make test    install what tests need and run them
# make check   lint, types, architecture, docs up to date
# make bench   figures (set EP_PLAN_DATA to a folder of recorded traces for all of them)
# make docs    write the generated parts of docs/, and the output shown on pages
# make docs-test   run the commands of all pages (`make test` leaves the slow ones out), and hold what is shown against what is printed
# make docs-site   build the documentation as a site in build/site
# make golden  write the golden plans of the examples anew

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
SOURCES := $(shell find planner profiles -name '*.py' -o -name '*.yaml') pyproject.toml constraints.txt

.PHONY: solve test check bench docs docs-test docs-site golden clean

solve: $(VENV)/.installed
	$(BIN)/ep-plan solve examples/tiny-moe/deployment.yaml -o plan.json

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not docs" tests

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

docs: $(VENV)/.dev
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/outputs.py

docs-test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto tests/cli/test_pages.py tests/unit/test_site.py tests/unit/test_schemas.py

docs-site: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

golden: $(VENV)/.dev
	$(BIN)/ep-plan check --update examples

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The example runs from an installed wheel, as a user's would.
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	@test -e $(VENV)/.dev || $(PIP) .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
