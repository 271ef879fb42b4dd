PYTHON ?= python3
BIN := .venv/bin
SCENES := runs/soundscapes
RUN := runs/demo

.PHONY: install demo test bench lint docs wheel

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
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist loadfile

bench: install
	$(BIN)/atk bench --short --out runs/bench $(if $(COMPARE),--compare $(COMPARE))

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Links, so that the pages' relative links hold in the repository and in build/site alike.
docs: .venv/.docs
	rm -rf build/docs && mkdir -p build/docs
	ln -s $(addprefix ../../,$(wildcard README.md CHANGELOG.md docs benchmarks examples)) build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

wheel: .venv/.release
	$(BIN)/python .ci/wheel.py

.venv/.docs .venv/.release: .venv/.%: .venv/.installed
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --disable-pip-version-check 'audio-text-kernels[$*]'
	@touch $@
