# make demo   set up, train and evaluate the proposed method on generated street scenes, in three minutes
# make test   set up, run the test suite and the notebooks, in about six minutes on two cores
# make quick  set up, run the unit tests, in about a minute
# make test-lowest   set up in .venv-lowest, run the test suite with the lowest versions that pyproject.toml allows
# make lint   set up, check style and types
# make wheel  set up, build a wheel, and use it in an environment that has nothing else of this checkout
# make docs   set up, build the documentation in build/docs/index.html; a broken link or reference fails
# make benchmarks   set up, compare with other packages, write docs/benchmarks.md
# TORCH names the torch to install, e.g. TORCH="torch==2.14.1 torchvision==0.29.1"; PYTHON the interpreter (3.11 or newer).

PYTHON ?= python3
TORCH ?= torch torchvision
BIN := .venv/bin
PYTEST = $(BIN)/python -m pytest --numprocesses auto --dist worksteal

.PHONY: demo test quick test-lowest lint wheel docs benchmarks clean

demo: .venv/demo
	$(BIN)/crosscoop fit --config configs/demo.yaml --run runs/demo --resume
	$(BIN)/crosscoop test --run runs/demo
	$(BIN)/crosscoop report runs/demo --output runs/demo/report.html
	@echo
	@echo "Metrics:  runs/demo/metrics.json"
	@echo "Pictures: runs/demo/predictions.png"
	@echo "Report:   runs/demo/report.html"
	@echo "To play with it: $(BIN)/pip install -e '.[demo]' && $(BIN)/crosscoop demo runs/demo"
	@echo "To train again, remove runs/demo."

test: .venv/dev
	$(PYTEST)

quick: .venv/dev
	$(PYTEST) -m 'not slow and not command'

test-lowest: BIN := .venv-lowest/python/bin
test-lowest: .venv-lowest/dev
	$(PYTEST)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs -d build/doctrees . build/docs
	@echo "The site: build/docs/index.html"

SMALL := --trainer.max_steps 1 --trainer.limit_val_batches 1 --data.num_workers 0 --data.batch_size 2

# The new environment takes the dependencies from .venv, whose editable install it does not see.
wheel: .venv/dev
	rm -rf build/wheel build/lib
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	$(BIN)/python -m venv --without-pip build/wheel/venv
	$(BIN)/pip --python build/wheel/venv/bin/python install --quiet --no-deps build/wheel/*.whl
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$(build/wheel/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/others.pth"
	cd build/wheel && PATH="$$PWD/venv/bin:$$PATH" && crosscoop show-configs --copy demo --output mine.yaml && \
		crosscoop fit --config crosscoop:demo --config mine.yaml --run run $(SMALL) && \
		crosscoop report run --num-images 0 && \
		python -c 'import crosscoop; assert "build/wheel" in crosscoop.__file__, crosscoop.__file__'

benchmarks: .venv/dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .venv-lowest build crosscoop.egg-info

.venv/demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "got $$($(PYTHON) --version), expected Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/dev: .venv/demo
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps cityscapesscripts # its requirement `typing` breaks today's Python
	@touch $@

.venv/docs: .venv/demo
	$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@

# Python 3.11, which uv finds or downloads: some of the oldest versions have no wheels for a newer one.
.venv-lowest/dev: pyproject.toml
	$(PYTHON) -m venv --clear .venv-lowest/uv
	.venv-lowest/uv/bin/pip install --quiet uv
	.venv-lowest/uv/bin/uv venv --quiet --clear --seed --python 3.11 .venv-lowest/python
	.venv-lowest/uv/bin/uv pip install --quiet --python .venv-lowest/python --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/python/bin/pip install --quiet --no-deps cityscapesscripts # as above
	@touch $@
