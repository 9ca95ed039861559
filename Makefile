# Two commands do everything on a fresh machine with Python 3.11, pip, make and git: `make run` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Spinning OpenMP threads cost up to 33x on busy cores.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

.PHONY: run test docs lint format report ui sync slurm-test bench bench-long clean

run: .venv/.done  ## the main job on config/config.yaml
	snakemake --profile profiles/local --cores $(CORES)

test: .venv/.done  ## all tests that this machine can run
	pytest -q -n $(CORES) --dist loadfile

docs: .venv/.done  ## the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

lint: .venv/.done  ## ruff, mypy, snakefmt, Snakemake's lint
	ruff check src tests benchmarks studies docs/hooks.py docs/pictures.py
	ruff format --check src tests benchmarks studies docs/hooks.py docs/pictures.py
	mypy
	snakefmt --check Snakefile rules
	snakemake --lint

format: .venv/.done
	ruff check --fix src tests benchmarks studies docs/hooks.py docs/pictures.py
	ruff format src tests benchmarks studies docs/hooks.py docs/pictures.py
	snakefmt Snakefile rules

report: .venv/.done  ## make the report page again
	snakemake --profile profiles/local --cores $(CORES) --forcerun report

UI_PORT ?= 5000
ui: .venv/.done  ## MLflow on http://127.0.0.1:5000, or on UI_PORT; Ctrl-C ends it
	MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(UI_PORT) --workers 1

sync: .venv/.done  ## replay all finished and running steps into MLflow
	moesaic sync

slurm-test: .venv/.done  ## tests on a real two-node Slurm on this host (Debian packages munge slurmctld slurmd slurm-client; root)
	MOESAIC_REQUIRE_SLURM=1 pytest -q tests/slurm

bench: .venv/.done  ## one script per claim, then docs/benchmarks.md; under 20 minutes on two free cores
	for step in dense chat tasks; do moesaic $$step --config config/config.yaml || exit 1; done
	-python benchmarks/prepare.py
	python benchmarks/layer.py --repetitions 7
	python benchmarks/layer.py --widths 2048 --repetitions 5 --out benchmarks/results/layer-2048.json
	python benchmarks/step.py --layers 8
	python benchmarks/decode.py
	python benchmarks/workflow.py
	python benchmarks/packing.py --rows 8 --steps 5
	python benchmarks/clustering.py
	python benchmarks/evaluate.py --items 8
	python benchmarks/page.py

bench-long: .venv/.done  ## the two that take a quarter of an hour each
	python benchmarks/layer.py --widths 2048 --tokens 8192 --repetitions 5 --out benchmarks/results/layer-2048-8192.json
	python benchmarks/step.py --repetitions 7 --out benchmarks/results/step-30.json
	python benchmarks/page.py

clean:  ## remove results, logs and the MLflow database; the environment stays
	rm -rf results logs mlflow.db mlartifacts .snakemake

.venv/.done: pyproject.toml envs/cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c envs/cpu.txt -e '.[dev]'
	touch $@
