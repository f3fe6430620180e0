PYTHON ?= python3
BIN = .venv/bin

# One thread each: more make the small tensors of tests slower. Some tests wait, so three processes fill two cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal

.PHONY: demo docs docs-pages docs-serve test test-fast test-slow test-oldest test-newest types quality style

# The main job on embedded data: teacher, student alone and distilled student on synthetic street scenes.
demo: .venv
	$(BIN)/python scripts/quickstart.py --output_dir runs/demo --overwrite

# The pages that commands write, then the site, in site/.
docs: docs-pages .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean

# One page shows what a misspelled model answers: the Hub is not asked for it.
docs-pages: .venv
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_methods.py
	$(BIN)/python docs/make_models.py
	$(BIN)/python docs/make_options.py
	$(BIN)/python docs/make_recipes.py
	HF_HUB_OFFLINE=1 $(BIN)/python docs/make_troubleshooting.py

# The site with its search on http://127.0.0.1:8000, written again whenever a page changes.
docs-serve: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

# PYTEST_OPTIONS: more options of pytest; CI asks for the coverage.
test: quality
	$(PYTEST) $(PYTEST_OPTIONS)

# Without the tests that start processes or train several runs.
test-fast: quality
	$(PYTEST) -m "not slow and not integration"

# The suite on the lower bounds of setup.cfg, and on the newest releases that it admits. From PyPI, torch is a CUDA
# build of several GB.
test-oldest test-newest: test-%: .venv-%/installed
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest -q -n 3 --dist worksteal

.venv-oldest/installed: setup.cfg constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet -c constraints-oldest.txt -e '.[test,onnx]' torchvision
	touch $@

.venv-newest/installed: setup.cfg
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade -e '.[test,onnx]'
	touch $@

test-slow: .venv
	$(BIN)/python -m pytest -q -m slow
	HF_SEGKD_FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest -q tests/commands/test_fuzz.py

# The public names of the package, as a user's type checker sees them.
types: .venv/installed-docs
	$(BIN)/python -m pyright --pythonpath $(BIN)/python

quality: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: .venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The marker is the last step, so that an interrupted installation is done again.
.venv: .venv/installed
.PHONY: .venv

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,onnx,demo,video]'
	touch $@

# What only the site and the type checker need; tests do without.
.venv/installed-docs: .venv/installed setup.cfg
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@
