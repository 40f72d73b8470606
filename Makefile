# make install   .venv with everything        make test   lint, types and tests, as CI runs them
# make demo      train, evaluate, predict, export and look inside on real digits, in about three minutes

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: install litert test-litert demo lint test clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

litert: .venv-litert/installed

.venv-litert/installed: pyproject.toml constraints-litert.txt
	$(PYTHON) -m venv .venv-litert
	.venv-litert/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-litert.txt -e '.[train,litert,dev]'
	@touch $@

test-litert: litert
	OMP_NUM_THREADS=1 .venv-litert/bin/python -m pytest -m "slow or not slow" tests/deploy/test_litert.py

demo: install
	rm -rf $(DEMO)
	$(BIN)/linvit train --config demo --out $(DEMO)
	$(BIN)/linvit eval $(DEMO) mnist5k
	$(BIN)/linvit predict $(DEMO) mnist5k --top 3 --grid $(DEMO)/predictions.png
	$(BIN)/linvit export $(DEMO) --to onnx
	$(BIN)/linvit inspect $(DEMO) mnist5k --out $(DEMO)
	@echo "look into $(DEMO): curves.png, confusion_matrix.png, predictions.png, model.safetensors, model.onnx"
	@echo "where it looks, how sharply: file://$(CURDIR)/$(DEMO)/report.html"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy linvit

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

clean:
	rm -rf .venv .venv-litert .pytest_cache .ruff_cache .mypy_cache *.egg-info
