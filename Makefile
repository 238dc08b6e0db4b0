# make serve   set up and serve the default model on 127.0.0.1:8000     (ARGS="--port 9000 …" adds options)
# make test    set up and run the whole test suite                      (ARGS="-k scheduler …" selects)
# make lint    style and types
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

bin := $(VENV)/bin
pip := $(bin)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
inputs := pyproject.toml constraints.txt

.PHONY: serve test lint clean

serve: $(VENV)/.serve
	@exec $(bin)/octavo serve $(ARGS)

# In the order of their names: by itself pytest-xdist keeps files of few tests for last, and those are the slow ones.
# Threads that wait sleep: two processes whose threads spin for two cores take up to four times as long.
test: $(VENV)/.test
	OMP_WAIT_POLICY=passive $(bin)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/.test
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second run start at once; a change of the inputs installs again.
$(VENV)/.serve: $(inputs) | $(bin)/python
	@echo "installing Octavo into $(VENV) (once)"
	$(pip) torch
	$(pip) --editable .
	@touch $@

$(VENV)/.test: $(inputs) $(VENV)/.serve
	@echo "installing what the tests need into $(VENV) (once)"
	$(pip) --editable '.[dev,bench]'
	@touch $@

$(bin)/python:
	$(PYTHON) -m venv $(VENV)
