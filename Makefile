# make run [PRESET=auto] [RUN=name] [SEED=1] [N_PROMPTS=200] ...   install, build the stand-ins if they are what runs,
#                 execute both notebooks into results/<run>/; any parameter of theirs may be given; interrupted, it goes
#                 on; FRESH=True moves what is there aside
# make seeds SEEDS="0 1 2" [PRESET=auto] ...   the same for each of these seeds of the training, side by side
# make rejudge REWARD_MODEL=... [FROM=published]   cut a run's responses where they open a human turn, and judge them
# make report RUN=name   the page of a run, results/<run>/report.html, from its files
# make browser    install Debian's Chromium where no Chromium is found; the tests of the page need it
# make test       install, check the style, run all tests
# make kills      kill demo runs at 20 random moments and compare their ends; about 15 minutes
# make notebooks  refresh what is generated and committed: notebooks' outputs (one demo run, named example), the
#                 published record's measurement, colab/, and what docs/build.py writes
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# The names given on the command line; make hands their values on in the environment, whatever is in them.
NAMES = $(filter-out PYTHON,$(foreach word,$(MAKEOVERRIDES),$(if $(findstring =,$(word)),$(firstword $(subst =, ,$(word))))))

.PHONY: run seeds rejudge report browser test kills notebooks

run: .venv/installed
	@$(BIN)/python -m posttrain $(NAMES)

seeds rejudge report: .venv/installed
	@$(BIN)/python -m posttrain $@ $(NAMES)

browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium >/dev/null; }

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/python demo/build.py
	$(BIN)/pytest --numprocesses 2 --dist loadgroup

kills: .venv/installed
	$(BIN)/python tests/kills.py

notebooks: .venv/installed
	$(BIN)/python demo/build.py
	$(BIN)/python demo/refresh.py
	$(BIN)/python colab/build.py
	$(BIN)/python -m docs.build

.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo 'Python 3.11 to 3.14 is needed. Name one, for example: make run PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@
