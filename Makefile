# Each target installs what it needs into .venv first; a stamp per layer remembers what is there already.
#
#   make demo      the embedded tiny pipeline and video VAE, plain and in other ways; through ComfyUI too if one is found
#   make test      lint, types, unit tests, and the tests against each ComfyUI that is found
#   make quick     lint, types, and the unit tests that are not slow: for while you work
#   make comfyui   the ComfyUI that is found, with this pack linked in, on http://127.0.0.1:8188
#   make bench     what the pack costs on top of a bare diffusers call
#
# COMFYUI_PATH=folder    the ComfyUI to use, or several with ':' between them: the first for demo and comfyui, all for
#                        the tests (else: around this folder, ~/comfy/ComfyUI, ~/ComfyUI, and ComfyUI-* beside these)
# TORCH_INDEX=url        package index for torch, e.g. https://download.pytorch.org/whl/cpu
# PYTHON=program         the Python that makes .venv, 3.10 or newer
# COVERAGE=1             unit tests also count the lines they run, and fail below the share in pyproject.toml

PYTHON ?= python3
TORCH_INDEX ?=
COVERAGE ?=
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check \
	-c tests/constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
INSTALL := $(PY) $(PIP_INSTALL)
# Asked of the pack itself, so that make, the command line and the tests agree; an empty COMFYUI_PATH says "none".
NAMED := $(if $(filter undefined,$(origin COMFYUI_PATH)),,COMFYUI_PATH='$(COMFYUI_PATH)')
FIND := import runpy; print(*runpy.run_path('commands/paths.py')['find_comfyuis'](), sep=':')
COMFYUIS := $(shell $(NAMED) $(PYTHON) -c "$(FIND)")
ifneq ($(filter-out 0,$(.SHELLSTATUS)),)
$(error whether there is a ComfyUI could not be found out)
endif
COMFYUI := $(shell echo '$(COMFYUIS)' | cut -d: -f1)
export COMFYUI_PATH := $(COMFYUIS)
# Each ComfyUI pins versions of its own, so each set of requirements has a layer of its own on top of .venv.
LAYER := $(if $(COMFYUI),$(VENV)/comfyui-$(shell cksum < '$(COMFYUI)/requirements.txt' | cut -d' ' -f1))
COMFY_PY := $(if $(COMFYUI),$(LAYER)/bin/python,$(PY))
ENGINE_TESTS := $(PY) -m pytest tests/unit -m 'not alone' -n 2 --dist worksteal -q \
	$(if $(COVERAGE),--cov --cov-report=term:skip-covered)

# Tiny models gain nothing from threads, and two test workers would fight for the cores.
export OMP_NUM_THREADS ?= 1
# Nothing that runs here may need the network.
TEST_ENV := HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1

.PHONY: demo test quick lint types unit-tests slow-list alone-tests comfyui-tests one-comfyui-tests comfyui bench clean
.DELETE_ON_ERROR:

# -- layers of .venv ----------------------------------------------------------------------------------------------

$(VENV)/.stamp-python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch and its companion first and by themselves, so that no other requirement can choose another build of them.
$(VENV)/.stamp-torch: $(VENV)/.stamp-python tests/constraints.txt
	@echo "torch, diffusers and what they need go into $(VENV): some minutes, once"
	$(INSTALL) torch torchvision
	@touch $@

$(VENV)/.stamp-pack: $(VENV)/.stamp-torch pyproject.toml
	$(INSTALL) -e '.[standalone]'
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-pack
	$(INSTALL) -e '.[standalone,test,sdnq,cache,torchao,cluster]'
	@touch $@

# ComfyUI's own requirements, less torch and torchvision: those are there. The .pth file shows the layer what .venv has,
# editable installs included. torchaudio's ordinary wheel cannot load its compiled parts beside another build of torch,
# and does without them where they are missing; ComfyUI's core imports it and uses none of them.
ifneq ($(COMFYUI),)
$(LAYER)/.stamp: $(VENV)/.stamp-pack
	$(PY) -m venv $(LAYER)
	$(PY) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$($(LAYER)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/below.pth
	grep -viE '^(torch|torchvision|torchaudio)([^a-z]|$$)' '$(COMFYUI)/requirements.txt' > $(LAYER)/requirements.txt
	$(LAYER)/bin/python $(PIP_INSTALL) -r $(LAYER)/requirements.txt
	if grep -qiE '^torchaudio([^a-z]|$$)' '$(COMFYUI)/requirements.txt'; then \
		$(LAYER)/bin/python $(PIP_INSTALL) --no-deps torchaudio && \
		{ $(LAYER)/bin/python -c 'import torchaudio' 2>/dev/null || \
			rm -f $(LAYER)/lib/python*/site-packages/torchaudio/lib/*torchaudio*.so; } && \
		$(LAYER)/bin/python -c 'import torchaudio'; \
	fi
	@touch $@
endif

# mypy wants the folder under the package's name.
$(VENV)/lint/fastdiffusers: $(VENV)/.stamp-test
	@mkdir -p $(VENV)/lint
	@ln -sfn ../.. $@

# -- what people run ----------------------------------------------------------------------------------------------

demo: $(VENV)/.stamp-pack $(if $(COMFYUI),$(LAYER)/.stamp)
	$(PY) -m fastdiffusers demo --output demo_output
ifneq ($(COMFYUI),)
	$(COMFY_PY) -m fastdiffusers.scripts.comfyui run "example_workflows/Text to Image.json" --output demo_output
else
	@echo "ComfyUI: none found, so the example workflow was not run (COMFYUI_PATH=folder names one)"
endif

# Two at a time, because the tests against ComfyUI wait for servers and a browser; each shows its output when it has
# ended, and one that fails stops none of the others. Real Rays come last, two files of tests at a time and nothing else:
# how soon processes are there and end is what is tested, and Ray itself gives up where it waits for too long.
SUITES := lint types $(if $(COMFYUI),comfyui-tests) unit-tests

test: $(VENV)/.stamp-test $(if $(COMFYUI),$(LAYER)/.stamp)
	@echo "$(strip $(SUITES)): two at a time, each is shown when it has ended"
	@$(MAKE) --no-print-directory --keep-going --jobs 2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) \
		$(SUITES)
	@$(MAKE) --no-print-directory alone-tests
ifeq ($(COMFYUI),)
	@echo "tests/comfyui: skipped, no ComfyUI found (COMFYUI_PATH=folder names one)"
endif

# Left out of it is what tests/unit/slow.txt names, by its time; of most functions with parameters some cases stay.
quick: $(VENV)/.stamp-test lint types
	$(TEST_ENV) $(PY) -m pytest tests/unit -m 'not alone and not slow' -n 2 --dist worksteal -q

lint: $(VENV)/.stamp-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/lint/fastdiffusers
	cd $(VENV)/lint && MYPYPATH=. ../bin/python -m mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p fastdiffusers

unit-tests: $(VENV)/.stamp-test
	$(TEST_ENV) $(ENGINE_TESTS)

slow-list: $(VENV)/.stamp-test
	$(TEST_ENV) $(PY) -m pytest tests/unit -m 'not alone' -q --write-slow

alone-tests: $(VENV)/.stamp-test
	$(TEST_ENV) $(PY) -m pytest tests/unit/cluster -m alone -n 2 --dist loadfile -q

comfyui-tests: $(VENV)/.stamp-test
	@echo '$(COMFYUIS)' | tr : '\n' | while read -r folder; do \
		$(MAKE) --no-print-directory one-comfyui-tests COMFYUI_PATH="$$folder" < /dev/null || exit 1; \
	done

one-comfyui-tests: $(VENV)/.stamp-test $(if $(COMFYUI),$(LAYER)/.stamp)
	@echo "tests/comfyui: $(or $(COMFYUI),no ComfyUI found)"
	$(TEST_ENV) $(COMFY_PY) -m pytest tests/comfyui -n 2 --dist loadfile --no-loadscope-reorder -q

comfyui: $(if $(COMFYUI),$(LAYER)/.stamp,$(VENV)/.stamp-pack)
	$(COMFY_PY) -m fastdiffusers.scripts.comfyui serve --port 8188

bench: $(VENV)/.stamp-test
	$(PY) -m fastdiffusers.benchmarks.overhead

clean:
	rm -rf $(VENV) demo_output .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage *.egg-info
