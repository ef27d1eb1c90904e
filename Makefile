# The commands that the README names. Each makes .venv if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
DEMO_FLAGS := $(if $(DATA),--data $(DATA))
BENCH_FLAGS ?= --device cpu --threads 2
# a thread for each of two processes of tests; these write bytecode, as they start some fifty others
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=
TEST_FLAGS := -n 2 --dist loadfile --no-loadscope-reorder

# the environment of the oldest versions that pyproject.toml allows, and that of the newest
FLOORS_PYTHON ?= 3.10
NEWEST_PYTHON ?= 3.14

.PHONY: demo test test-floors test-newest types papers docs bench

demo: $(VENV)/installed
	$(BIN)/nnunet-transformers demo $(DEMO_FLAGS)

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TEST_ENVIRONMENT) $(BIN)/python -m pytest $(TEST_FLAGS)
	$(BIN)/python benchmarks/ratios.py

types: $(VENV)/installed
	$(BIN)/mypy

# docs/papers.md, of what papers, recipes and presets say
papers: $(VENV)/installed
	$(BIN)/python docs/papers.py

docs: $(VENV)/installed
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -e ".[docs]"
	$(BIN)/mkdocs build --strict

test-floors test-newest: test-%: $(VENV)/installed
	$(BIN)/python -m uv venv --quiet --seed --allow-existing --python $(if $(filter floors,$*),$(FLOORS_PYTHON),$(NEWEST_PYTHON)) .venv-$*
	$(BIN)/python -m uv pip compile --quiet --python .venv-$*/bin/python --extra test --extra benchmark \
		--resolution $(if $(filter floors,$*),lowest-direct,highest) -o .venv-$*/requirements.txt pyproject.toml
	$(BIN)/python -m uv pip install --quiet --python .venv-$*/bin/python -r .venv-$*/requirements.txt --no-deps -e .
	$(TEST_ENVIRONMENT) .venv-$*/bin/python -m pytest $(TEST_FLAGS)

bench: $(VENV)/installed
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -e ".[benchmark]"
	$(BIN)/nnunet-transformers benchmark $(BENCH_FLAGS) --patch-size 96,96,96 -o benchmarks/results/cpu_3d
	$(BIN)/nnunet-transformers benchmark $(BENCH_FLAGS) --patch-size 320,320 --num-classes 9 -o benchmarks/results/cpu_2d
	$(BIN)/nnunet-transformers benchmark $(BENCH_FLAGS) --patch-size 48,192,192 --networks mit_22 -o benchmarks/results/cpu_thick
	$(BIN)/python benchmarks/releases.py benchmarks/results/cpu_*/benchmark.json -o benchmarks/results/releases.md

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -e ".[test]"
	touch $@
