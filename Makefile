# Each target installs what it needs into .venv first; a stamp per layer remembers what is there already.
#
#   make demo      the embedded tiny pipeline, plain and with everything on; through ComfyUI too where one is found
#   make test      lint, types, unit tests with coverage, and the tests against a real ComfyUI where one is found
#   make comfyui   the ComfyUI that is found, with this pack linked in, on http://127.0.0.1:8188
#   make bench     what the pack costs on top of a bare diffusers call
#
# COMFYUI_PATH=folder    the ComfyUI to use (else: around this folder, ~/comfy/ComfyUI, ~/ComfyUI)
# TORCH_INDEX=url        package index for torch, e.g. https://download.pytorch.org/whl/cpu
# PYTHON=program         the Python that makes .venv, 3.10 or newer

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check \
	-c tests/constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# Asked of the pack itself, so that make, the command line and the tests agree; an empty COMFYUI_PATH says "none".
NAMED := $(if $(filter undefined,$(origin COMFYUI_PATH)),,COMFYUI_PATH='$(COMFYUI_PATH)')
FIND := import runpy; print(runpy.run_path('commands/paths.py')['find_comfyui']() or '')
COMFYUI := $(shell $(NAMED) $(PYTHON) -c "$(FIND)")
export COMFYUI_PATH := $(COMFYUI)
ENGINE_TESTS := $(PY) -m pytest tests/unit -n 2 --dist worksteal -q --cov --cov-report=term:skip-covered

# Tiny models gain nothing from threads, and two test workers would fight for the cores.
export OMP_NUM_THREADS ?= 1
# Nothing that runs here may need the network.
TEST_ENV := HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1

.PHONY: demo test lint types unit-tests comfyui-tests comfyui bench clean
.DELETE_ON_ERROR:

# -- layers of .venv ----------------------------------------------------------------------------------------------

$(VENV)/.stamp-python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch and its companion first and by themselves, so that no other requirement can choose another build of them.
$(VENV)/.stamp-torch: $(VENV)/.stamp-python tests/constraints.txt
	$(INSTALL) torch torchvision
	@touch $@

$(VENV)/.stamp-pack: $(VENV)/.stamp-torch pyproject.toml
	$(INSTALL) -e '.[standalone]'
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-pack
	$(INSTALL) -e '.[standalone,test,sdnq,cache,torchao]'
	@touch $@

# ComfyUI's own requirements, less torch and its companions: those are there.
$(VENV)/.stamp-comfyui: $(VENV)/.stamp-pack
ifneq ($(COMFYUI),)
	grep -viE '^(torch|torchvision|torchaudio)([^a-z]|$$)' '$(COMFYUI)/requirements.txt' > $(VENV)/comfyui-requirements.txt
	$(INSTALL) -r $(VENV)/comfyui-requirements.txt
endif
	@touch $@

# mypy wants the folder under the package's name.
$(VENV)/lint/fastdiffusers: $(VENV)/.stamp-test
	@mkdir -p $(VENV)/lint
	@ln -sfn ../.. $@

# -- what people run ----------------------------------------------------------------------------------------------

demo: $(VENV)/.stamp-pack $(if $(COMFYUI),$(VENV)/.stamp-comfyui)
	$(PY) -m fastdiffusers demo --output demo_output
ifneq ($(COMFYUI),)
	$(PY) -m fastdiffusers.scripts.comfyui run example_workflows/tiny_text_to_image.json --output demo_output
else
	@echo "ComfyUI: none found, so the example workflow was not run (COMFYUI_PATH=folder names one)"
endif

test: lint types $(if $(COMFYUI),comfyui-tests) unit-tests
ifeq ($(COMFYUI),)
	@echo "tests/comfyui: skipped, no ComfyUI found (COMFYUI_PATH=folder names one)"
endif

lint: $(VENV)/.stamp-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/lint/fastdiffusers
	cd $(VENV)/lint && MYPYPATH=. ../bin/python -m mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p fastdiffusers

unit-tests: $(VENV)/.stamp-test
	$(TEST_ENV) $(ENGINE_TESTS)

comfyui-tests: $(VENV)/.stamp-test $(VENV)/.stamp-comfyui
	$(TEST_ENV) $(PY) -m pytest tests/comfyui -n 2 --dist loadfile -q

comfyui: $(VENV)/.stamp-comfyui
	$(PY) -m fastdiffusers.scripts.comfyui serve --port 8188

bench: $(VENV)/.stamp-test
	$(PY) -m fastdiffusers.benchmarks.overhead

clean:
	rm -rf $(VENV) demo_output .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage *.egg-info
