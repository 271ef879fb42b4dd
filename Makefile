PYTHON ?= python3
BIN := .venv/bin
SCENES := runs/soundscapes
RUN := runs/demo

.PHONY: install demo test bench lint

install: .venv/.installed

.venv/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: install
	$(BIN)/atk soundscapes $(SCENES) --preset easy --train 3000 --val 0 --test 240 --twins 20
	$(BIN)/atk train aligned --data $(SCENES) --out $(RUN) --resume --config benchmarks/demo.yaml
	$(BIN)/python benchmarks/demo.py $(RUN) $(SCENES)

test: install
	$(BIN)/pytest

bench: install
	$(BIN)/python benchmarks/bench_max_mean.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
