# make run: train on the bundled sample and look at recommendations. make test: every check.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
BIN := $(VENV)/bin
TORCH := $(shell grep '^torch==' constraints.txt)
# For tests of the GPU kernels without a GPU; a CUDA build of torch brings the triton it fits.
TRITON := triton==3.9.0
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: run test clean

run: $(READY)
	$(BIN)/recsys train --model sasrec --data sample --recipe sasrec_sample

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

clean:
	rm -rf $(VENV) build dist *.egg-info

# torch goes first, as its CPU build where there is no NVIDIA driver: nothing that follows may bring
# gigabytes of CUDA packages to a machine that cannot use them.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "recsys needs Python 3.11 or newer; name it with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then \
		$(PIP) '$(TORCH)+cpu' || { \
			echo "This index has no CPU build of torch: taking its default build, which may bring CUDA."; \
			echo "To avoid that, stop here and install $(TORCH)+cpu from PyTorch's own index into $(VENV)."; \
			$(PIP) '$(TORCH)'; }; \
		if [ "$$(uname -m)" = x86_64 ]; then $(PIP) '$(TRITON)'; fi; \
	else $(PIP) '$(TORCH)'; fi
	$(PIP) --editable '.[dev]'
	touch $(READY)
