# Type `make` for what there is.
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
# The names given on the command line. make hands their values on in the environment, whatever is in
# them.
GIVEN = $(foreach word,$(MAKEOVERRIDES),$(if $(findstring =,$(word)),$(firstword $(subst =, ,$(word)))))
NAMES = $(filter-out PYTHON,$(GIVEN))

define HELP
make run [PRESET=auto] [RUN=name] [SEED=1] [N_PROMPTS=100] ...
                        install, then train and evaluate a run: both notebooks, into results/<run>/.
                        Any parameter of theirs may be given. Interrupted, it goes on where it
                        stopped; FRESH=True moves what is there aside.
make seeds SEEDS="0 1 2" [PRESET=auto] ...
                        the same for each of these seeds of the training, then side by side
make compare RUNS="one two" [RUN=name]
                        evaluated runs that differ in one setting, side by side
make import FROM=folder [RUN=name]
                        take in prompts.json, responses.json and scores.json from elsewhere
make rejudge REWARD_MODEL=... [FROM=published]
                        cut a run's responses where they open a human turn, and judge them again
make report RUN=name    make the page of a run anew, results/<run>/report.html
make install            install only
make test               check the style and run the tests, about five minutes
make test-slow          the rest of the tests: the page in Chromium, many kills, Colab, real text
make browser            install Debian's Chromium for the page's tests, where none is found
make notebooks          refresh what is generated and committed
endef
export HELP

.PHONY: help run seeds compare import rejudge report install test test-slow browser notebooks

help:
	@echo "$$HELP"

run seeds compare import rejudge report: install
	@$(BIN)/python -m posttrain $@ $(NAMES)

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

.venv/installed: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
	  { echo 'Python 3.11 to 3.14 is needed. Name one: make run PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@
