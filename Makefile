# One obvious command for each chore. Targets that need packages build .venv first.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready
SIMULATORS := $(patsubst infra/simulators/requirements-%.txt,%,$(wildcard infra/simulators/requirements-*.txt))

.PHONY: setup sweep test test-full lint typecheck format tree $(SIMULATORS) simulators lerobot preflight submit services bench-simulators bench-rollouts bench-train bench-data bench-sft bench-scale bench-serving bench-overhead bench-report bench-resume bench-faults bench bench-peer fuzz soak clean

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make needs Python 3.11: install it or say make PYTHON=/path/to/python3.11"; exit 1; }
	@command -v g++ >/dev/null || { echo "DeepSpeed compiles its CPU optimiser on first use: install g++"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt torch setuptools wheel
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --no-build-isolation -c constraints.txt deepspeed
	$(BIN)/pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $(READY)

setup: $(READY)  ## build .venv with everything the main job needs

sweep: $(READY)  ## the main job: train and evaluate tiny backbones on the tabletop
	$(BIN)/python jobs/backbone_sweep.py --preset laptop

test: $(READY)  ## the suite for every change, on two cores: much of it waits for processes
	$(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

test-full: $(READY)  ## the suite with its long tests: faults, soak, end to end
	$(BIN)/python -m pytest -q -m 'full or not full'

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

tree: $(READY)  ## write README's tree anew from what the files say of themselves
	$(BIN)/python -m tests.readme_tree

typecheck: $(READY)
	$(BIN)/mypy

$(SIMULATORS): $(READY)  ## a simulator's own interpreter; SRC=PATH takes checkouts on disk
	bash infra/simulators/setup.sh $@ $(SRC)

simulators: $(SIMULATORS)

lerobot: $(READY)  ## LeRobot's own environment, to serve its checkpoints
	bash infra/policies/setup-lerobot.sh

preflight: $(READY)  ## start each installed simulator, render a frame, say what is wrong
	$(BIN)/python -m envs preflight

bench-simulators: $(READY)  ## simulators' steps per second beside rendering every step; QUICK=1 is shorter
	$(BIN)/python tests/bench/bench_simulators.py $(if $(QUICK),--quick,--json tests/bench/simulators.json)

bench-rollouts: $(READY)  ## the pool beside a bare loop, a peer and the ideal; QUICK=1: under five minutes
	PYTHONPATH=.:platform $(BIN)/python -m tests.bench.bench_rollouts $(if $(QUICK),--quick)

bench-train: $(READY)  ## training beside a bare PyTorch loop and DDP; QUICK=1: under five minutes
	$(BIN)/python tests/bench/bench_train.py $(if $(QUICK),--quick)

bench-sft: $(READY)  ## a stage's fine-tuning beside TRL's SFTTrainer, fetched first; QUICK=1: a minute
	@test -x $${VLA_HOME:-$$HOME/.vla}/peers/trl/bin/python || bash tests/bench/peer_trl.sh
	$(BIN)/python tests/bench/bench_sft.py $(if $(QUICK),--quick)

bench-data: $(READY)  ## prepared data beside data as published and lerobot's loader, fetched first; QUICK=1: under five minutes
	@test -x $${VLA_HOME:-$$HOME/.vla}/peers/lerobot/bin/python || bash tests/bench/peer_lerobot.sh
	PYTHONPATH=.:platform $(BIN)/python tests/bench/bench_data.py $(if $(QUICK),--quick) $(if $(FRAMES),--frames $(FRAMES))

bench-scale: $(READY)  ## the study on 8 to 256 GPUs, simulated, beside what ran here (docs/scale.md)
	PYTHONPATH=.:platform $(BIN)/python -m tests.bench.bench_scale --json tests/bench/scale.json

bench-serving: $(READY)  ## requests per second of a served policy, batched, one by one, and openpi's server, fetched first
	@test -d $${VLA_HOME:-$$HOME/.vla}/peers/openpi || bash tests/bench/peer_openpi.sh || true
	PYTHONPATH=.:platform $(BIN)/python tests/bench/bench_serving.py $(if $(QUICK),--turns 2) --json tests/bench/serving.json

bench-overhead: $(READY)  ## a policy's forward and backward beside its bare VLM's
	PYTHONPATH=. $(BIN)/python tests/bench/bench_policy_overhead.py

bench-report: $(READY)  ## how long the report takes to build and to show
	PYTHONPATH=.:platform $(BIN)/python tests/bench/bench_report.py $(if $(QUICK),--rows 10000) --json tests/bench/report.json

bench-resume: $(READY)  ## how long a finished study's command takes to print its tables
	PYTHONPATH=.:platform $(BIN)/python -m tests.bench.bench_resume $(if $(QUICK),--seeds 1) --json tests/bench/resume.json

bench-faults: $(READY)  ## faults on a seeded schedule, counted, and that nothing was lost
	PYTHONPATH=.:platform $(BIN)/python -m tests.bench.bench_faults $(if $(QUICK),--scenarios "children killed" "driver killed")

bench: $(READY)  ## all of them, then tests/bench/RESULTS.md; ONLY="train data", QUICK=1
	PYTHONPATH=.:platform $(BIN)/python -m tests.bench.results $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

fuzz: $(READY)  ## bad input by the million: FOR=240 seconds, KEEP=FOLDER for what is found; totals add up in tests/bench/fuzz.json
	PYTHONPATH=.:platform $(BIN)/python -m tests.bench.fuzz --seconds $(or $(FOR),240) $(if $(SEED),--seed $(SEED)) $(if $(KEEP),--keep $(KEEP))

soak: $(READY)  ## a study in a loop under faults: FOR=2400 seconds, SEED=…, QUICK=1 one round, KEEP=FOLDER for logs; totals add up in tests/bench/soak.json
	PYTHONPATH=.:platform $(BIN)/python -m tests.bench.soak --seconds $(or $(FOR),$(if $(QUICK),60,2400)) $(if $(SEED),--seed $(SEED)) $(if $(KEEP),--keep $(KEEP))

bench-peer: $(READY)  ## the peer that bench-rollouts measures, in an environment of its own
	bash tests/bench/peer_vla_eval.sh

ADDRESS ?= $(or $(RAY_API_SERVER_ADDRESS),http://127.0.0.1:8265)
submit: $(READY)  ## run JOB=jobs/NAME.py ARGS='…' on the cluster at ADDRESS; DETACH=1; DO=logs|status|stop ID=…
	@$(BIN)/python -m vla_platform.submit --address $(ADDRESS) $(or $(DO),run $(if $(DETACH),--detach)) $(JOB) $(ID) $(ARGS)

services: $(READY)  ## SeaweedFS, Prometheus and a Ray head on loopback; DO=stop|status
	@$(BIN)/python -m infra.services $(or $(DO),start) $(ARGS)

clean:
	rm -rf .venv build *.egg-info
