# `make demo` and `make test` need CPython >= 3.10 and make; everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

# Tensors of the demo and the tests are tiny: a second thread gains little on idle cores and, waiting for its turn on
# busy ones, has been seen to cost a factor of twenty.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint bench clean

demo: $(STAMP)
	@rm -rf runs/demo runs/demo-comparison
	$(BIN)/twofold train vae-gan --data digits --out runs/demo --examples 150000 --seed 0
	$(BIN)/twofold sample runs/demo -n 64 --seed 0 --out runs/demo/samples.png
	$(BIN)/twofold compare vae dcgan vae-gan --data digits --seeds 3 --examples 40000 --out runs/demo-comparison --metrics frechet,manifold,high_frequency,mse,structure
	@echo
	@echo "Done. Open runs/demo-comparison/report.html (VAE, GAN and VAE-GAN side by side) and runs/demo/report.html in a browser; the samples alone are runs/demo/samples.png"

test: $(STAMP) lint
	$(BIN)/pytest -n auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		(echo "Twofold needs CPython 3.10 or newer; name one with: make PYTHON=python3.11" >&2; exit 1)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,tensorboard]'
	@touch $(STAMP)

# In an environment of its own: the peers are no dependencies. torchgan and mimicry without theirs, of which a training
# step needs none. More in one run: make bench BENCH='--data PHOTOS --batch 8 32'
BENCH ?=

bench:
	$(PYTHON) -m venv build/bench
	build/bench/bin/pip install --quiet --constraint constraints.txt pythae --editable .
	build/bench/bin/pip install --quiet --no-deps torchgan torch-mimicry
	build/bench/bin/python bench/speed.py all --out build/bench.md $(BENCH)
	@echo "The tables are in build/bench.md and build/bench.json"

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
