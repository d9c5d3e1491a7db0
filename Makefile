# make figures   the paper's figures at laptop scale      make test   the fast tests
# make all       and the supplementary figures            make report one self-contained HTML page
#
# SCALE=tiny|laptop|workstation and CORES=n choose another scale and fewer cores.

PYTHON ?= python3
CORES ?= all
SCALE ?= laptop

BIN := .venv/bin
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES) --config scale=$(SCALE) --

.PHONY: figures all report test lint schemas clean

figures: .venv/installed
	$(SNAKEMAKE) figures

all: .venv/installed
	$(SNAKEMAKE) all

report: all
	$(BIN)/snakemake --cores 1 --config scale=$(SCALE) --report results/$(SCALE)/report.html -- all

test: .venv/installed-dev
	$(BIN)/pytest $(PYTEST)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/codespell

# the JSON schemas of the configuration, from src/nme/config.py
schemas: .venv/installed
	$(BIN)/python -m nme.config workflow/schemas

# forget the outputs, keep the environment
clean:
	rm -rf results/* figures/* logs .snakemake

# ---- the environment: made once, and again when pyproject.toml changes

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"nme needs Python 3.11 or newer; this is {v.major}.{v.minor}. Set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@
