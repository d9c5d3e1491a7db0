# make figures   the paper's figures at laptop scale
# make all       and the supplementary figures, the claims, and the report: one self-contained HTML page
# make test      the fast tests, in two processes         make bench  the benchmarks of docs/benchmarks.md
# make site      the documentation as a website, in site/
#
# The scale is config/config.yaml's. SCALE=tiny|laptop|workstation and CORES=n choose another one and fewer cores;
# SEEDS=15 trains more members per cell than the scale says. PYTEST='-n 0 -k sam' gives pytest other options.

PYTHON ?= python3
CORES ?= all
SCALE ?=
SEEDS ?=
PYTEST ?=
GPU ?=

BIN := .venv/bin
CONFIG = $(if $(SCALE)$(SEEDS),--config $(SCALE:%=scale=%) $(SEEDS:%=seeds=%)) --
SNAKEMAKE = $(BIN)/snakemake --cores $(CORES) $(CONFIG)
REPORT = results/$(or $(SCALE),$(shell sed -n 's/^scale: *//p' config/config.yaml))/report.html

.PHONY: figures all report publish test lint bench gpu-check site tutorials image lock schemas clean

figures: .venv/installed
	$(SNAKEMAKE) figures

all report: .venv/installed
	$(SNAKEMAKE) all
	$(BIN)/snakemake --report $(REPORT) $(CONFIG) all

# make all, and keep the claims and the plotted numbers for README and docs/science.md (not Figure 1's, which are many)
publish: KEPT = docs/$(patsubst %/report.html,%,$(REPORT))
publish: all
	mkdir -p $(KEPT)
	cp $(dir $(REPORT))claims.md $(KEPT)
	find figures -name '*.csv' ! -name fig1.csv -exec cp {} $(KEPT) \;

test: .venv/installed-dev
	$(BIN)/pytest --numprocesses 2 $(PYTEST)

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/codespell

# the GPU path (docs/gpu.md); GPU='--device cpu --quick' rehearses it without one
gpu-check: .venv/installed
	$(BIN)/python benchmarks/gpu.py $(GPU)

bench: .venv/installed-dev
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/curvature.py
	$(BIN)/python benchmarks/steps.py

# the documentation, in site/; a warning is an error
site: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

# run the pages in docs/ that show output, and keep what they print and draw
tutorials: .venv/installed-dev
	$(BIN)/python docs/tools/picture.py
	$(BIN)/python docs/tools/tutorials.py

# the container image of all jobs, where Apptainer is installed
image: .venv/installed
	apptainer build --force containers/nme-$$($(BIN)/python -c 'import nme; print(nme.__version__)').sif containers/nme.def \
	  || { echo "make image: failed; docs/cluster.md#the-image says what to do"; exit 1; }

# requirements.lock: the exact versions that `make`, the image and CI install, for every Python and system in one file.
# Those in it stay as long as pyproject.toml allows them; UPGRADE='--upgrade' or '--upgrade-package torch' moves them.
lock: .venv/installed-dev
	$(BIN)/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --no-annotate --custom-compile-command 'make lock' --extra workflow pyproject.toml --output-file requirements.lock
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' \
	  | $(BIN)/uv pip compile --quiet $(UPGRADE) --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	  --no-annotate --custom-compile-command 'make lock' - --output-file docs/tools/requirements.lock

# the JSON schemas of the configuration, from src/nme/config
schemas: .venv/installed
	$(BIN)/python -m nme.config.schemas workflow/schemas

# delete every result of every scale; keep the environment and what was downloaded
clean:
	find results figures -mindepth 1 -maxdepth 1 ! -name downloads ! -name .gitkeep -exec rm -r {} +
	rm -rf logs .snakemake

# ---- the environments: made once, and again when pyproject.toml or the lock file changes

.venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"nme needs Python 3.11 or newer; this is {v.major}.{v.minor}. Set PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

# The site's packages are kept out of the environment that computes results.
.venv-docs/installed: docs/tools/requirements.lock
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --require-hashes --requirement docs/tools/requirements.lock
	@touch $@
