# `make demo` and `make test` work from a bare clone: they make the environment they need.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready

.PHONY: demo test image-test k8s-test cluster-test clean

demo: $(READY)
	scripts/demo.sh $(VENV)/bin

test: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Skipped with a reason where no container engine runs and none can be started.
image-test: $(READY)
	$(VENV)/bin/python scripts/image_test.py

# What is not there to check with (kubectl, promtool) is skipped, and listed.
k8s-test: $(READY)
	scripts/install_promtool.sh $(VENV)/bin
	$(VENV)/bin/pytest -rs tests/deploy

# In the cluster that kubectl's context names, whose nodes have the image; skipped with a reason where there is none.
IMAGE ?= deepcode-analyst:0.1.0
cluster-test: $(READY)
	$(VENV)/bin/python scripts/cluster_test.py --image $(IMAGE)

# torch first and pinned: an unpinned one brings gigabytes of CUDA packages along.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[compress,serve,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) runs build *.egg-info
