PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-slow quality style

# The main job on embedded data: teacher, student alone and distilled student on synthetic street scenes.
demo: .venv
	$(BIN)/python scripts/quickstart.py --output_dir runs/demo --overwrite

test: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q

test-slow: .venv
	$(BIN)/python -m pytest -q -m slow

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
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,onnx,demo]'
	touch $@
