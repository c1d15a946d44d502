# make run [PRESET=auto] [RUN=] [FRESH=False]   install, build the demo if it is what runs, execute both notebooks into
#                                 results/<run>/; interrupted, it goes on; FRESH=True moves what is there aside
# make kills                      kill demo runs at 20 random moments and compare their ends; about 15 minutes
# make test                       install, check the style, run all tests
# make notebooks                  refresh the outputs that are committed: one demo run, named example
SHELL := bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
PRESET ?= auto
RUN ?=
FRESH ?= False
export RUN
BIN := .venv/bin
# Of papermill's log, what a reader wants to see: no cell counts, progress bars and empty lines.
READABLE := grep --line-buffered -Ev '^(Executing|Ending) Cell|(it|examples)/s\]|IPKernelApp|^<(pandas|Figure|IPython)|^$$'

.PHONY: run test kills notebooks

run: .venv/installed
	@case "$$RUN" in example|published) echo "RUN=$$RUN is kept with the repository. Choose another name."; exit 1;; esac; \
	preset=$(PRESET); \
	if [ $$preset = auto ]; then \
	  preset=$$($(BIN)/python -c 'import torch; print("quick" if torch.cuda.is_available() else "demo")'); \
	fi; \
	folder=results/$${RUN:-$$preset}; \
	if [ $$preset = demo ]; then $(BIN)/python demo/build.py; fi && \
	mkdir -p "$$folder" && \
	for notebook in main eval; do \
	  $(BIN)/papermill $$notebook.ipynb "$$folder/$$notebook.ipynb" -k python3 --log-output --no-progress-bar \
	    -p PRESET $$preset -r RUN "$${RUN:-$$preset}" -p FRESH $(FRESH) 2>&1 | $(READABLE) || exit 1; \
	done && \
	cat "$$folder/summary.md" && echo && echo "Tables and records: $$folder   figures: figures/$${RUN:-$$preset}"

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/python demo/build.py
	$(BIN)/pytest --numprocesses 2 --dist loadfile

kills: .venv/installed
	$(BIN)/python tests/kills.py

notebooks: .venv/installed
	$(BIN)/python demo/build.py
	$(BIN)/python demo/refresh.py

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo 'Python 3.11 or 3.12 is needed. Name one, for example: make run PYTHON=python3.12'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@
