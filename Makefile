# IP-IQA: everything runs in .venv, which is made here. Needs make and Python 3.10 or newer with its venv module.
# Another interpreter: make install PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := output/demo

.PHONY: help install demo demo-ablation test test-slow test-cuda lint format clean

help:
	@echo 'make install        make $(VENV) and install IP-IQA in it (PyTorch is large: minutes)'
	@echo 'make demo           make the demo images, train over 3 folds, score four pictures, say why'
	@echo 'make demo-ablation  the same without prompts, then with the product fusion, each beside the first'
	@echo 'make test           the test suite; make test-slow runs the long tests it leaves out'
	@echo 'make test-cuda      the tests that need an NVIDIA GPU, which skip where there is none'
	@echo 'make lint           ruff and mypy; make format mends what ruff can'
	@echo 'make clean          remove $(VENV) and what tools left behind; output/ and cache/ stay'

install: $(STAMP)

$(STAMP): setup.py requirements.txt
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo "There is no '$(PYTHON)' here. Install Python 3.10 or newer, or name one: make install PYTHON=python3.12" >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "'$(PYTHON)' is $$('$(PYTHON)' --version 2>&1), too old: 3.10 or newer is needed. Name one: make install PYTHON=python3.12" >&2; \
	  exit 1; }
	@'$(PYTHON)' -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' has no venv module. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || '$(PYTHON)' -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $(STAMP)

# A demo that was interrupted goes on; one that is finished is shown again. Remove $(DEMO) to train anew.
demo: install
	$(BIN)/ipiqa demo-data
	$(BIN)/ipiqa demo-encoders --cfg-path ipiqa/projects/demo/ipiqa.yaml
	$(BIN)/ipiqa demo-pairs
	test -f output/image2prompt/demo/image_encoder.safetensors || \
	  $(BIN)/python pretrain_image2prompt.py --cfg-path ipiqa/projects/image2prompt/demo.yaml \
	  $$(test ! -f output/image2prompt/demo/config.yaml || echo --resume)
	$(BIN)/python train_agiqa3k.py --cfg-path ipiqa/projects/demo/ipiqa.yaml --num_cv 3 \
	  $$(test ! -f $(DEMO)/ipiqa/config.yaml || echo --resume)
	$(BIN)/ipiqa score $(DEMO)/ipiqa cache/demo/images --prompts cache/demo/data.csv --limit 4
	$(BIN)/ipiqa explain $(DEMO)/ipiqa cache/demo/images/muse-xl_normal_004.jpg \
	  "one blue triangle left of two red crosses, night scene" --out $(DEMO)/why.png

demo-ablation: demo
	$(BIN)/python train_agiqa3k.py --cfg-path ipiqa/projects/demo/image_only.yaml --num_cv 3 \
	  $$(test ! -f $(DEMO)/image_only/config.yaml || echo --resume)
	$(BIN)/python train_agiqa3k.py --cfg-path ipiqa/projects/demo/product.yaml --num_cv 3 \
	  $$(test ! -f $(DEMO)/product/config.yaml || echo --resume)
	$(BIN)/ipiqa report $(DEMO)/ipiqa $(DEMO)/image_only
	$(BIN)/ipiqa report $(DEMO)/ipiqa $(DEMO)/product

# pytest ends with status 5 when it ran no test, which fails here too.
test: install
	$(BIN)/python -m pytest $(ARGS)

test-slow: install
	$(BIN)/python -m pytest -m slow $(ARGS)

test-cuda: install
	$(BIN)/python -m pytest -m cuda $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find ipiqa tests -name __pycache__ -type d -prune -exec rm -rf {} +
