# make demo         train a small detector on generated images, test it, draw its predictions
# make demo-seg     the same with a segmentor
# make test         lint, types, documentation and tests
# make test-slow    the tests that take minutes each
# make test-faults  kills, full disks, losses that are NaN, hostile files
# make test-matrix  the tests in other versions of Python and the packages
# make families     try the backbone in every detector and segmentor, and write docs/families.md
# make light-curves COCO=DIR    train the variants of the light detectors, see docs/light.md
# make check-gpu    tests and benchmark on a CUDA card, in at most 8 minutes
# make docs         build the site of docs/ into site/
# make wheel        build the wheel into dist/
# All set up their own environment in .venv first, except for `PYTHON_GPU=python3 make check-gpu`. They
# need Python 3.10 to 3.13, git and a package index.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO := work_dirs/demo
DEMO_CONFIG := configs/evit_det_s_shapes.py
DEMO_SEG := work_dirs/demo-seg
DEMO_SEG_CONFIG := configs/upernet_evit_m0_shapes.py

# The first Python of a supported version; `make PYTHON=/path/to/python3.11 demo` overrides it.
SUPPORTED := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$python -c "$(SUPPORTED)" 2>/dev/null && echo $$python && break; done)

.PHONY: demo demo-seg test test-slow test-faults test-matrix families light-curves check-gpu lint docs wheel install lock clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/python tools/prepare_data.py shapes --out data/shapes --layout coco
	$(BIN)/python tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO) --seed 0
	$(BIN)/python tools/test.py $(DEMO_CONFIG) $$(cat $(DEMO)/last_checkpoint) --work-dir $(DEMO) \
		--show-dir $(DEMO)/pictures
	@echo "Pictures, annotated boxes on the left and predicted boxes on the right: $(DEMO)/pictures"

demo-seg: install
	$(BIN)/python tools/prepare_data.py shapes --out data/shapes --layout ade
	$(BIN)/python tools/train.py $(DEMO_SEG_CONFIG) --work-dir $(DEMO_SEG) --seed 0
	$(BIN)/python tools/test.py $(DEMO_SEG_CONFIG) $$(cat $(DEMO_SEG)/last_checkpoint) \
		--work-dir $(DEMO_SEG) --show-dir $(DEMO_SEG)/pictures
	@echo "Pictures, annotated classes on the left and predicted classes on the right:" \
		"$(DEMO_SEG)/pictures"

# Two processes; their idle threads yield the core instead of spinning on it. Tests start many more,
# which need almost three times as long for their imports where Python may not write bytecode.
test: lint docs
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q tests/faults
	PYTHONDONTWRITEBYTECODE= OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal \
		--ignore tests/faults

test-slow: install
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -m slow

# The suite runs a part of them.
test-faults: install
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
		$(BIN)/python -m pytest -m 'not slow' tests/faults

families: install
	PYTHONPATH=tests $(BIN)/python -m families.survey

light-curves: install
	PYTHONPATH=tests $(BIN)/python -m light.curves --data-root $(COCO)

# The suite in the environments of requirements/matrix.toml that it has not been run in. ROW=newest
# runs that row alone, again if need be; TESTS=tests/models runs a part, which is not recorded.
test-matrix: install
	$(BIN)/python requirements/matrix.py $(ROW) $(if $(TESTS),--tests $(TESTS))

# With PYTHON_GPU, another environment is checked as it is: nothing is installed. Four processes share
# the card in the tests, which wait for Python most of the time.
PYTHON_GPU ?= $(BIN)/python
CHECK_DEVICE ?= cuda
CHECK_SECONDS ?= 480
CHECK_OUT ?= work_dirs/gpu
# --foreground, so that Ctrl-C reaches what runs; the last minute is for the row that is compiling
# when the benchmark's time is over.
TIMEOUT := timeout --foreground --signal INT --kill-after 20
check-gpu: $(if $(filter $(BIN)/python,$(PYTHON_GPU)),install)
	@export PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}"; start=$$(date +%s); failed=0; \
	OMP_NUM_THREADS=4 $(TIMEOUT) $$(($(CHECK_SECONDS) * 5 / 8)) $(PYTHON_GPU) -m pytest -q \
		-m 'cuda and not slow' -n 4 --dist worksteal --device $(CHECK_DEVICE) --durations 5 \
		tests/gpu tests/compat tests/models; status=$$?; \
	test $$status -ne 4 || exit 2; \
	test $$status -eq 0 || { failed=1; echo "error: the tests ended with status $$status" >&2; }; \
	left=$$(($(CHECK_SECONDS) - $$(date +%s) + start - 10)); \
	$(TIMEOUT) $$left $(PYTHON_GPU) -m evit_mm benchmark --suite gpu --device $(CHECK_DEVICE) \
		--budget $$((left > 70 ? left - 60 : 10)) --out $(CHECK_OUT) || failed=1; \
	exit $$failed

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

# mkdocs-material announces MkDocs 2 in red at every build, unless this variable is set.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@! grep -rnE '<(script|link|img)[^>]* (src|href)="?https?:' --include='*.html' site || \
		{ echo "error: the pages above fetch files from other hosts" >&2; exit 1; }
	@echo "The site: site/index.html, or with its search: python3 -m http.server --directory site"

# setuptools comes from the lock, so that nothing is downloaded.
wheel: install
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

install: $(INSTALLED)

# pip takes over where uv can't reach the index: only pip reads pip's configuration files.
$(INSTALLED): requirements/lock.txt requirements/bootstrap.txt pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) -c "$(SUPPORTED)" || { echo "error: evit-mm needs Python 3.10 \
	to 3.13, and there is none: install one, or name it with make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements/bootstrap.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --require-hashes \
		-r requirements/lock.txt || \
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --require-hashes \
		-r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation --editable .
	@touch $@

COMPILE := $(BIN)/uv pip compile --universal --python-version 3.10 --generate-hashes \
	--no-emit-index-url --no-header --no-annotate --quiet --upgrade
lock: install
	$(COMPILE) requirements/bootstrap.in -o requirements/bootstrap.txt
	$(COMPILE) requirements/lock.in --override requirements/overrides.txt \
		--no-emit-package opencv-python -o requirements/lock.txt

clean:
	rm -rf $(VENV) work_dirs data/shapes site build dist .pytest_cache .ruff_cache .mypy_cache \
		*.egg-info
