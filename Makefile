# make demo   set up and run the whole pipeline on an embedded store (mlflow.db): social navigation, or TASK=lunar_lander, quadruped;
#             TASK=half_cheetah EXPERT=path/to/HalfCheetah-v3.zip, and so on for the tasks of configs/benchmark whose agents are zips: two arms, three seeds
# make test   set up and run linters, type checks, the import contract and the tests
# make test-slow  what is long by nature: kills, outages, races, failing disks, hostile input, clusters and a team's server
#             (Debian: apt-get install slurm-wlm munge postgresql), the versions of plain pip
# make test-processors  the tests under each instruction set that this machine's libraries can be told to use and that changes a bit
# make setup  only the set-up, with what tests, clusters and exports need; a second call reuses what is there
# make check  linters, types, import contract
# make golden, golden-check  what the smoke pipelines leave, bit for bit, before a change and after it
# make older  the whole pipeline, tiny, on the older versions that plain pip resolves
# make metaworld  the environment in which Meta-World's tasks of the benchmark run: .venv-metaworld
# make browser  a tiny comparison, its report opened in Chromium at two sizes, light and dark (needs Chromium in PATH)
# make race   sixteen processes at one registry, in SQLite and in PostgreSQL (Debian: apt-get install postgresql)
# make benchmark ZOO=path/to/rl-trained-agents  the public benchmark (docs/benchmark.md), hours; TASK=hopper: one of its tasks
# make team   PostgreSQL, a bucket and a server with users on loopback, until Ctrl-C (Debian: apt-get install postgresql)
# make ui     look at the demo's runs in a browser
# make clean  remove the environment (never the store)

PYTHON ?= python3
VENV := .venv
METAWORLD := .venv-metaworld
BIN := $(CURDIR)/$(VENV)/bin
# recipes through a shell, or GNU make 3.81 (macOS) looks their programs up in the PATH it was started with
SHELL := bash
# `mlflow run --env-manager local` runs the first `python` in PATH: make that the environment's
export PATH := $(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
# modules are compiled once, not by every process again: that takes twice as long as importing them
unexport PYTHONDONTWRITEBYTECODE
TASK ?= social_nav
STORE := $(or $(MLFLOW_TRACKING_URI),sqlite:///mlflow.db)

# a task of the benchmark as a demo: only scratch and warm, and few seeds
BENCHMARK := $(wildcard configs/benchmark/$(TASK).yaml)
DEMO = $(if $(BENCHMARK),-P config=$(BENCHMARK) -P matched_seeds=3 -P finetune.arms={},-P config=configs/$(TASK)/main.yaml) \
	$(if $(EXPERT),-P 'expert=$(EXPERT)')

.PHONY: benchmark demo test test-slow slow test-processors golden golden-check setup check older metaworld browser race team ui clean

# the store first: two demos, started in the same second, would both make its tables; artifacts lie beside it
demo: $(VENV)/.runs
	MLFLOW_TRACKING_URI='$(STORE)' MLFLOW_EXPERIMENT_NAME=$(TASK) python -m pipeline store
	MLFLOW_TRACKING_URI='$(STORE)' mlflow run . -e main --env-manager local --experiment-name $(TASK) $(DEMO)

test: check
	pytest -n 2 -m "not slow"

# the older versions are installed meanwhile: that mostly waits for the network
test-slow: setup
	$(MAKE) -j 2 older slow

# three at a time: much of it waits for clusters and servers
slow: setup
	pytest -n 3 -m slow

test-processors: setup
	python -m benchmarks.processors --tests

check: setup
	ruff check .
	ruff format --check .
	mypy
	lint-imports

golden golden-check: setup
	python -m benchmarks.golden $(if $(filter golden,$@),write,check)

browser: setup
	python benchmarks/report_in_browser.py
	python benchmarks/ui_in_browser.py

RACE_OPERATIONS ?= 10000
race: setup
	python benchmarks/registry_race.py --store sqlite --operations $(RACE_OPERATIONS)
	python benchmarks/registry_race.py --store postgresql --operations $(RACE_OPERATIONS)

BENCHMARKED := $(if $(filter command line,$(origin TASK)),$(TASK))
benchmark: $(VENV)/.runs $(if $(BENCHMARKED),$(if $(filter metaworld%,$(BENCHMARKED)),metaworld),metaworld)
	python -m benchmarks.public $(BENCHMARKED) $(if $(ZOO),--zoo '$(ZOO)')

team: setup
	@python -W ignore -m benchmarks.team

# the first line says which page to open: at its bare address MLflow shows a new browser prompts and traces, not runs
ui: $(VENV)/.runs
	MLFLOW_TRACKING_URI='$(STORE)' $(if $(filter command line,$(origin TASK)),MLFLOW_EXPERIMENT_NAME=$(TASK)) python -m pipeline store
	$(if $(filter http%,$(STORE)),,mlflow ui --backend-store-uri '$(STORE)')

setup: $(VENV)/.installed

# what tests and clusters need on top of what runs
$(VENV)/.installed: $(VENV)/.runs
	"$(BIN)/uv" pip install --quiet --python "$(BIN)/python" -c constraints.txt -e '.[dev]'
	touch $@

# torch first, with pip: its CPU build is then what everything else finds installed
$(VENV)/.runs: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11; give a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt torch uv
	"$(BIN)/uv" pip install --quiet --python "$(BIN)/python" -c constraints.txt -e '.[postgresql,slurm]'
	touch $@

# plain pip follows the pins of `imitation`: stable-baselines3 2.2 and gymnasium 0.29
OLDER := .venv-older
older: $(OLDER)/.installed
	rm -rf $(OLDER)/store && mkdir $(OLDER)/store
	PATH="$(CURDIR)/$(OLDER)/bin:$$PATH" MLFLOW_TRACKING_URI=sqlite:///$(OLDER)/store/mlflow.db \
		MLFLOW_EXPERIMENT_NAME= $(OLDER)/bin/python -m entrypoints.main --config configs/smoke/main.yaml \
		--finetune.arms '[sac]' --ppo_timesteps 2048 --compare.playback_episodes 0

$(OLDER)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(OLDER)/bin/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# metaworld asks for MuJoCo 3.3.0; everything else is as in $(VENV)
metaworld: $(METAWORLD)/.installed

$(METAWORLD)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(METAWORLD)
	grep -v '^mujoco' constraints.txt > $(METAWORLD)/constraints.txt
	$(METAWORLD)/bin/python -m pip install --quiet --disable-pip-version-check -c $(METAWORLD)/constraints.txt torch uv
	$(METAWORLD)/bin/uv pip install --quiet --python $(METAWORLD)/bin/python -c $(METAWORLD)/constraints.txt \
		-e . metaworld==3.1.1
	touch $@

clean:
	rm -rf $(VENV) $(OLDER) $(METAWORLD)
