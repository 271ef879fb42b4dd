PYTHON ?= python3
BIN := .venv/bin
SCENES := runs/soundscapes
RUN := runs/demo
# Tests compile faster if their bytecode is kept.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: help install demo quick test exhaustive coverage bench triton lint types format docs wheel hub

help: ## list these targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed 's/:[^#]*## /\t/' | expand -t 12

install: .venv/.installed ## create .venv with the exact versions in constraints.txt

.venv/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: install ## write synthetic scenes, train on them, and evaluate
	$(BIN)/atk soundscapes $(SCENES) --preset easy --train 3000 --val 0 --test 240 --twins 20
	$(BIN)/atk train aligned --data $(SCENES) --out $(RUN) --resume --config benchmarks/demo.yaml
	$(BIN)/python benchmarks/demo.py $(RUN) $(SCENES)

quick: install ## the fast tests, under two minutes on two cores
	$(PYTEST) -m "not slow and not exhaustive"

test: install ## the tests, under eight minutes on two cores
	$(PYTEST) -m "not exhaustive"

exhaustive: install ## all tests, as in continuous integration
	$(PYTEST)

coverage: install ## all tests, with the share of lines that they run
	$(PYTEST) --cov --cov-report=term:skip-covered

bench: install ## the short benchmarks; with COMPARE=saved.json, a regression fails
	$(BIN)/atk bench --short --out runs/bench $(if $(COMPARE),--compare $(COMPARE))

triton: install ## compile the kernels with every declared version of Triton for every architecture; takes hours
	OMP_NUM_THREADS=1 $(BIN)/python .ci/triton_versions.py

lint: install types ## ruff, codespell, and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $$(git ls-files)

types: install ## the type checker
	$(BIN)/pyrefly check --min-severity warn

format: install ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# build/docs holds links to the pages, so that their relative links work both in the repository and in build/site.
docs: .venv/.docs ## build the site into build/site
	rm -rf build/docs && mkdir -p build/docs
	ln -s $(addprefix ../../,$(wildcard README.md CHANGELOG.md CONTRIBUTING.md CITATION.cff docs benchmarks examples)) build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/mkdocs.yml

wheel: .venv/.release ## build the sdist and the wheel into dist/, and test the wheel in a clean environment
	$(BIN)/python .ci/wheel.py

hub: install ## lay out the ops as a kernel for the Hugging Face hub in build/hub
	$(BIN)/python .ci/hub_kernel.py build/hub

.venv/.docs .venv/.release: .venv/.%: .venv/.installed
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --disable-pip-version-check 'audio-text-kernels[$*]'
	@touch $@
