# Type `make` to see the commands.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
# pip's settings that say where packages come from. uv does not know them, so pip is used with them.
SOURCES := index|find-links|constraint|proxy|cert|trusted
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# The parameters that are named on the command line (whatever is named there, so that a misspelt one
# is refused), and those that the environment contains. make passes their values on in the
# environment, which works for any characters in them. MODEL, TO, PUBLIC and FORCE are taken from
# the command line alone, since the environment may have them for something else.
PARAMETERS = PRESET RUN RESULTS FIGURES LABEL FRESH SETTINGS DATASET BASE_MODEL FORMAT MAX_PAIRS SEED \
  REPORT_TO REWARD_MODEL HARMLESS_FROM HELPFUL_ABOVE SECOND_JUDGE PROTOCOL HARMFUL_PROMPTS \
  N_PROMPTS MAX_NEW_TOKENS HARMFUL HELPFUL OUT FROM RUNS SEEDS SETTING VALUES VOTES KEEP PROCESSES \
  PROCESS_TIMEOUT
from = $(foreach name,$(2),$(if $(filter $(1),$(firstword $(origin $(name)))),$(name)))
GIVEN = $(filter-out PYTHON BIN SUDO SHELL,$(call from,command,$(.VARIABLES)))
INHERITED = $(filter-out $(GIVEN),$(call from,environment,$(PARAMETERS)))

define HELP
Commands to use the repository

make run [PRESET=auto] [RUN=name] [SEED=1] [N_PROMPTS=100] ...
                        Install what is needed, then train and evaluate a run by executing both
                        notebooks. The results are in results/<run>/. Any parameter of the
                        notebooks may be given, here or in the environment. Repeat the command to
                        continue after an interruption. FRESH=True moves the old results aside and
                        starts over. PROCESSES=4 shares the work among four GPUs.
make data HARMFUL=source HELPFUL=source OUT=folder
                        Convert preference data of other formats, from the hub or from files, into
                        a folder that make run DATASET=folder takes. One of the two is enough.
make seeds SEEDS="0 1 2" [PRESET=auto] ...
                        Train and evaluate one run per training seed, then compare the runs.
make sweep SETTING=beta VALUES="0.03 0.1 0.3" [PRESET=auto] ...
                        Train and evaluate one run per value of a setting of the training, and ask
                        all runs the same prompts. Then compare the runs.
make compare RUNS="one two" [RUN=name]
                        Compare evaluated runs that differ in one setting.
make import FROM=folder [RUN=name]
                        Make a run of prompts.json, responses.json and scores.json from elsewhere.
make reask FROM=run RUN=new [PROTOCOL=paper] [SETTINGS=...] [N_PROMPTS=...]
                        Copy a run's trained models into a new run, and let them answer there by
                        another protocol or other settings of the evaluation. Nothing is trained.
make rejudge REWARD_MODEL=... [FROM=published]
                        Cut a run's responses where they open a human turn, and judge them again.
make report RUN=name    Write the page of a run, results/<run>/report.html, again.
make votes RUN=name VOTES=file
                        Count the votes that a person gave in the blind mode of a run's page.
make chat RUN=name [KEEP=True]
                        Type your own questions, which all models of a run answer. KEEP=True adds
                        the answers to results/<run>/chat.json.
make merge RUN=name MODEL="SFT+DPO" OUT=folder
                        Write a model with its adapter merged into the base, so that PEFT is not needed.
make push RUN=name TO=user/name [PUBLIC=True] [FORCE=True]
                        Send a finished run to the Hugging Face hub, to a private repository unless
                        PUBLIC=True. FORCE=True replaces the run in a repository that exists.
make install            Install what is needed and do nothing else.

Commands to work on the repository

make test               Check the style and run the tests, which takes about five minutes.
make test-slow          Run the slow tests: the page in Chromium, interruptions, Colab, real text.
make browser            Install Debian's Chromium for the tests in a browser if there is none.
make lock               Resolve requirements.lock again, with uv, after a change of a pin.
make notebooks          Make the committed outputs, Colab notebooks and documents again.
endef
export HELP

define LOCK_HEAD
# All packages of requirements-dev.txt with hashes, for Python 3.11 to 3.14 on every platform, as
# PyPI has them. Written by `make lock`; change requirements.txt or requirements-dev.txt instead.
# torch is PyPI's, which includes CUDA on Linux. For a machine without an NVIDIA card, install a
# torch for CPUs into .venv before `make install`, as README says: an installed torch is kept, and
# then neither PyPI's torch nor any package of CUDA is downloaded.
endef
export LOCK_HEAD

.PHONY: help run data seeds sweep compare import reask rejudge report votes chat merge push install \
  test test-slow browser lock notebooks

help:
	@echo "$$HELP"

run data seeds sweep compare import reask rejudge report votes chat merge push: install
	@$(if $(INHERITED),echo "Taken from the environment: $(INHERITED).")
	@$(BIN)/python -m posttrain $@ $(GIVEN) $(INHERITED)

install: .venv/installed

browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { $(SUDO) apt-get update -qq && \
	    $(SUDO) apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

test: install
	$(BIN)/ruff check .
	$(BIN)/pytest --numprocesses 2 --dist loadgroup -m "not slow"

test-slow: install
	$(BIN)/pytest --numprocesses 2 --dist loadgroup -m slow

notebooks: install
	$(BIN)/python demo/refresh.py
	$(BIN)/python colab/build.py
	$(BIN)/python -m docs.build

lock:
	@command -v uv >/dev/null || \
	  { echo 'make lock needs uv: https://docs.astral.sh/uv/getting-started/installation'; exit 1; }
	uv pip compile --quiet --no-config --default-index https://pypi.org/simple --universal \
	  --python-version 3.11 --generate-hashes --no-header requirements-dev.txt \
	  --output-file requirements.lock
	{ echo "$$LOCK_HEAD"; cat requirements.lock; } > requirements.lock.tmp
	mv requirements.lock.tmp requirements.lock

# uv checks the hashes of the lock. pip takes its versions alone, since it may be set to install
# local wheels, which have other hashes. Both keep a torch that is installed already.
.venv/installed: requirements.txt requirements-dev.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo 'Python 3.11 to 3.14 is needed. Name one: make run PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv
	@if command -v uv >/dev/null && ! $(BIN)/pip config list | grep -qE '$(SOURCES)'; then \
	  echo 'Installing with uv.' && \
	  uv pip install --quiet --no-config --python $(BIN)/python -r requirements-dev.txt \
	    --constraints requirements.lock; \
	else \
	  echo 'Installing with pip.' && \
	  grep -E '^[a-z0-9]' requirements.lock | tr -d '\\' > .venv/versions.txt && \
	  $(BIN)/pip install --quiet -r requirements-dev.txt -c .venv/versions.txt; \
	fi || { echo 'The packages of requirements.lock could not be installed, as is said above. If one' \
	  'has no wheel for this platform, use Linux, WSL or macOS on Apple silicon.'; exit 1; }
	touch $@
