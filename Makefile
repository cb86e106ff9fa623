# One target per wish; CI calls the same ones.
BIN := .venv/bin

.PHONY: setup demo test test-fast check bench crash fuzz limits soak trust

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt scripts/setup
	scripts/setup
	touch $@

demo: setup
	$(BIN)/calibrant demo --out demo-out

test: setup
	scripts/test

test-fast: setup
	scripts/test-fast

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/pipeline.py --write
	$(BIN)/python benchmarks/logits.py --write
	$(BIN)/python benchmarks/serving.py --write
	$(BIN)/python benchmarks/devices.py --write
	$(BIN)/python benchmarks/start.py --write

trust: setup
	scripts/trust

fuzz: setup
	scripts/fuzz $(MUTANTS)

crash: setup
	$(BIN)/python benchmarks/crash.py --kills $(or $(KILLS),100) --points $(or $(POINTS),1) --write

limits: setup
	$(BIN)/python benchmarks/at_the_limits.py $(ROWS)

soak: setup
	$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),60) --over $(or $(OVER),10) --write
