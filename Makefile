# Each target builds .venv by itself. PYTHON picks the interpreter that makes it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PIP = $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: demo test test-full lab notebooks check-notebooks dist clean

demo: $(STAMP)  ## run the playbook on the demo POC; succeeds exactly when the demo ends in its NO-GO
	@$(BIN)/genai-playbook run demo; code=$$?; \
	if [ $$code -eq 1 ]; then echo "The demo POC is NO-GO, as it should be: its flaws were found."; else echo "The demo ended with exit code $$code, not in NO-GO (1)."; exit 1; fi

test test-full: check-notebooks  ## test: everything that CI runs; test-full: with the tests that take minutes
	@.ci/browser
	$(BIN)/ruff check .
	$(BIN)/nbdev-test --n-workers 2
	$(BIN)/python -m pytest $(if $(filter test,$@),-m "not slow")

# Export and clean work on a copy, so that a check never changes what it checks
check-notebooks: $(STAMP)
	@rm -rf build/check && mkdir -p build/check && cp -r pyproject.toml settings.ini setup.py README.md LICENSE nbs genai_playbook build/check/
	@cd build/check && ../../$(BIN)/nbdev-export && ../../$(BIN)/nbdev-clean
	@diff -r -q nbs build/check/nbs || { echo "Notebooks are not clean: run nbdev-clean."; exit 1; }
	@diff -r -q -x __pycache__ genai_playbook build/check/genai_playbook || { echo "Modules differ from their notebooks: run nbdev-export."; exit 1; }
	@rm -rf build/check

lab: $(STAMP)  ## JupyterLab on the demo: the cockpit, and copies of the chapters
	$(BIN)/genai-playbook lab demo $(if $(filter 0,$(shell id -u)),--allow-root)

notebooks: $(STAMP)  ## execute every notebook in place with the demo, so that its outputs are evidence
	$(BIN)/python .ci/refresh

dist: $(STAMP)  ## sdist and wheel
	$(BIN)/python -m build

clean:
	rm -rf .venv build dist *.egg-info

$(STAMP): pyproject.toml settings.ini setup.py constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (some minutes on the first run; PyTorch is large) ..."
	@{ $(PIP) --upgrade "pip>=24" && $(PIP) -c constraints.txt "$$(grep '^torch==' constraints.txt)" && $(PIP) -c constraints.txt -e ".[dev]"; } > .venv/install.log 2>&1 || { cat .venv/install.log; exit 1; }
	@touch $(STAMP)
