# Everything runs in the environment .venv, which the first target that needs it makes.
#
#   make demo        fetch a teacher and text, run examples/demo.yaml into runs/demo
#   make demo-classification   the same for classes of texts: an encoder, movie reviews
#   make demo-compare    prompts, features, tuned layers, an adapter on the same rows; one page
#   make check       format, lint, types, stale documents, the house rules
#   make test        unit and run tests: the gate of a change
#   make test-fast   unit tests alone: tiny models in memory, no whole runs; within a minute
#   make test-slow   slow tests alone: real models, twenty kills, several processes, full products
#   make test-all    every test that this machine can run
#   make bench       every benchmark, small; BENCH= for the full measure
#   make docs        write the tables of docs/ that the registries know
#   make site        the pages as a site in build/site, by zensical; every link is checked
#   make results     write README's results table from runs/demo
#   make clean       forget the environment and the caches; runs/ and .demo/ stay

PYTHON ?= python3
BENCH ?= --quick
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_ENV := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 HF_HUB_OFFLINE=1
# Two workers of one thread each; a file stays with one of them, and with it what its tests share.
PYTEST = $(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	--max-worker-restart 1
SCRIPTS = $(filter-out %/results_table.py %/tables.py %/preference_tables.py %/instruct_tables.py %/remote_table.py %/plan_table.py %/rollout_tables.py %/peak.py %/step_sides.py %/harness.py %/distillkit.py %/held_out.py %/soup_shrink.py %/transport_tokenizers.py %/answer_tables.py %/answer_measures.py %/transport_tables.py %/sweep_tables.py %/compare_tables.py %/aligned_losses.py %/codec_tables.py %/prompt_tables.py,$(wildcard benchmarks/*.py))

.PHONY: demo demo-classification demo-compare test test-fast test-slow test-all check bench docs site results clean

# torch first and alone: pip then takes the build its settings offer (a CPU one, say), and the
# second command leaves it as it is.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/get_demo.py .demo
	$(BIN)/distill run examples/demo.yaml --run-dir runs/demo

demo-classification: $(STAMP)
	$(BIN)/python examples/get_classification_demo.py .demo/classification
	$(BIN)/distill run examples/classification.yaml --run-dir runs/classification

demo-compare: $(STAMP)
	$(BIN)/python examples/get_demo.py .demo
	$(BIN)/python examples/get_classification_demo.py .demo/classification
	$(BIN)/distill compare examples/compare.yaml --dir runs/comparison

test: $(STAMP)
	$(PYTEST) -m "not slow" $(TEST_OPTIONS)

test-fast: $(STAMP)
	$(PYTEST) -m "not run and not slow and not gpu" $(TEST_OPTIONS)

test-slow: $(STAMP)
	$(PYTEST) -m slow $(TEST_OPTIONS)

test-all: $(STAMP)
	$(PYTEST) $(TEST_OPTIONS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/make_losses.py --check
	$(BIN)/python docs/make_conformance.py --check
	$(BIN)/python docs/make_deploy.py --check
	$(BIN)/python benchmarks/tables.py --check
	$(TEST_ENV) $(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(STAMP)
	$(BIN)/python examples/get_demo.py .demo
	set -e; for script in $(SCRIPTS); do $(BIN)/python $$script $(BENCH); done

docs: $(STAMP)
	$(BIN)/python docs/make_losses.py
	$(BIN)/python docs/make_conformance.py
	$(BIN)/python docs/make_deploy.py

site: $(STAMP)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	$(BIN)/python docs/make_site.py

results: $(STAMP)
	$(BIN)/python benchmarks/results_table.py
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
