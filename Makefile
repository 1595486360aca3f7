# `make` lists the targets. Everything is installed into .venv/, in two steps: what a run needs, then what a developer needs.
PYTHON ?= python3
PIP_ARGS ?=
USECASE ?= parts
NOTEBOOK ?= *
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install -q -c constraints.txt $(PIP_ARGS)
RUN_NEEDS := constraints.txt settings.ini setup.py pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help run test export docs lab bench clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "PYTHON=$(PYTHON) makes .venv; PIP_ARGS='…' goes to pip, for example to name a source of CPU builds of torch."

run: .venv/.run ## install what is missing, then run a use case: make run [USECASE=parts] [ARGS='--data FOLDER -p epochs=3']
	@$(BIN)/tl run $(USECASE) $(ARGS)

test: .venv/.dev ## every notebook of the house, then tests/
	@echo "notebooks: each runs from top to bottom in a fresh kernel …"
	@tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && TMPDIR=$$tmp $(BIN)/nbdev_test --file_re '^[0-9][0-9]_.*\.ipynb$$' --n_workers 2 --timing
	@echo "tests/ …"
	@OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

export: .venv/.dev ## write tl_notebooks/, README.md, params.yaml and dvc.yaml from nbs/, and clean the notebooks
	@$(BIN)/nbdev_export
	@$(BIN)/nbdev_clean
	@$(BIN)/python docs/build.py readme
	@$(BIN)/tl dvc >/dev/null

docs: .venv/.dev ## build the pages in _docs/ from the notebooks
	@$(BIN)/python docs/build.py site

lab: .venv/.dev ## open working copies of the use cases in JupyterLab: make lab [ARGS=parts]; the house's own: ARGS=nbs
	@if [ "$(ARGS)" = nbs ]; then $(BIN)/jupyter lab nbs; else $(BIN)/tl lab $(ARGS); fi

bench: .venv/.dev ## execute nbs/benchmarks/*.ipynb into outputs/benchmarks/ (many minutes): make bench [NOTEBOOK=image_speed] [ARGS='-p name value']
	@mkdir -p outputs/benchmarks; failed=; for nb in nbs/benchmarks/$(NOTEBOOK).ipynb; do \
	  [ -e "$$nb" ] || { echo "no notebook in nbs/benchmarks/"; break; }; \
	  echo "$$nb → outputs/benchmarks/$${nb##*/}"; \
	  $(BIN)/papermill -k python3 --no-progress-bar $(ARGS) "$$nb" "outputs/benchmarks/$${nb##*/}" || failed="$$failed $${nb##*/}"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }

clean: ## remove what can be made again: pages, caches, build folders; keeps .venv/ and outputs/
	@rm -rf _docs _proc build dist *.egg-info .pytest_cache
	@find . \( -name .venv -o -name .git -o -name outputs \) -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -print0 | xargs -0 rm -rf
	@echo "kept: .venv/ and outputs/ (your runs); remove them by hand if you mean it"

# torch first and alone: it is most of the download, and nothing may ever ask for it without its version.
.venv/.run: $(RUN_NEEDS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "make: \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1 || true); accepted: Python 3.10 or newer. Name one: make PYTHON=/path/to/python3.11 …" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "make: \`$(PYTHON)\` has no venv module with pip. On Debian and Ubuntu: apt-get install python3-venv. Or name another: make PYTHON=… …" >&2; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making .venv with $$($(PYTHON) --version) …"; $(PYTHON) -m venv --clear .venv; }
	@echo "installing torch and torchvision (1 of 2; up to a minute, longer over a slow network) …"
	@$(INSTALL) torch torchvision
	@echo "installing fastai, timm, transformers, papermill and this package (2 of 2; about a minute) …"
	@$(INSTALL) -e .
	@touch $@

.venv/.dev: .venv/.run
	@echo "installing what developers need: nbdev, JupyterLab, pytest, Sphinx (about a minute) …"
	@$(INSTALL) -e '.[dev]'
	@touch $@
