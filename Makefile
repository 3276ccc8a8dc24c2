PYTHON ?= python3.11
BIN := .venv/bin
BUILT := _build/.doctrees/built
PORT ?= 8000
ALBERT := --task.sentence-task none --task.mask-probability 0.2 --task.max-n 1 --model.hidden-act relu \
	--model.num-hidden-layers 2 --model.num-hidden-groups 2 --training.epochs 3
STUDENT := --teacher runs/albert-teacher --max-length 504

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help dev book pdf epub serve links test bench bench-check gpu-check colab-check repo-url notebooks results mutants lint clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' Makefile

dev: .venv/installed-dev  ## Install all that work on the book needs, with git's hooks and readable diffs of notebooks
	$(BIN)/pre-commit install
	git config diff.jupyternotebook.command "'$(CURDIR)/$(BIN)/git-nbdiffdriver' diff"
	git config merge.jupyternotebook.driver "'$(CURDIR)/$(BIN)/git-nbmergedriver' merge %O %A %B %L %P"

# Sphinx reports a warning only when it reads or writes the page: an unfinished build leaves nothing to build on.
define build
@test -e $(BUILT) || rm -rf _build/.doctrees
@rm -f $(BUILT)
$(BIN)/jupyter-book build . -n -W --keep-going $(1)
@touch $(BUILT)
endef

book pdf epub serve links: export TQDM_DISABLE := 1
book: .venv/installed-book  ## Execute the chapters and build the site
	$(call build)
	@echo "The book is built. Open $(CURDIR)/_build/html/index.html"

pdf: .venv/installed-book  ## Print the whole book as a PDF, with Chromium
	@$(BIN)/python book/_tools/chromium.py
	$(call build,--builder singlehtml)
	$(BIN)/python book/_tools/pdf.py _build/singlehtml _build/pdf/measured-transformer.pdf
	@echo "The book is printed. Open $(CURDIR)/_build/pdf/measured-transformer.pdf"

epub: .venv/installed-book  ## Make an EPUB of the whole book; Chromium draws its formulas
	@$(BIN)/python book/_tools/chromium.py
	@rm -rf _build/epub
	$(call build,--builder custom --custom-builder epub)
	@echo "The book is made. Open $(CURDIR)/_build/epub/measured-transformer.epub"

serve: .venv/installed-book  ## Serve the site on this machine, and rebuild what is edited (PORT=8000)
	$(BIN)/python book/_tools/serve.py $(PORT)

links: .venv/installed-book  ## Ask every address that the book links to whether it still answers
	$(call build,--builder linkcheck)

test: export TQDM_DISABLE := 1
test: lint  ## Check everything: lint, unit tests, stored outputs of the chapters
	$(BIN)/python -X warn_default_encoding -m pytest --nbval --nbval-current-env tests book

bench: export TQDM_DISABLE := 1
bench: .venv/installed-bench,book,test  ## Time the package beside its peers, and draw the page on it; takes two hours of a quiet machine
	$(BIN)/python -m benchmarks
	$(BIN)/python book/_tools/execute.py book/performance.ipynb

bench-check: .venv/installed-bench,book,test  ## Time a part anew, and compare the ratios with the record
	$(BIN)/python -m benchmarks check

gpu-check: .venv/installed-book,test  ## Compare an NVIDIA GPU with the CPU, and train on it; skipped where there is none
	$(BIN)/python -m pytest -m gpu tests/test_gpu.py

colab-check: export TQDM_DISABLE := 1
colab-check: .venv/installed-book,test  ## Run chapters with Colab's versions, which are gigabytes (COLAB_PYTHON=python3.13)
	$(BIN)/python book/_tools/colab_check.py $(COLAB_PYTHON)

repo-url:  ## Write the repository's new address wherever it stands (URL=https://github.com/OWNER/NAME)
	@$(PYTHON) book/_tools/repository.py "$$URL"

notebooks: export TQDM_DISABLE := 1
notebooks: .venv/installed-book,test  ## Execute the chapters again and store their outputs
	$(BIN)/python book/_tools/execute.py book/*.ipynb

results: .venv/installed-book  ## Train what the chapters draw from records (resumable)
	$(BIN)/python -m companion train imdb --output runs/imdb --resume
	cp runs/imdb/record.json companion/results/imdb.json
	$(BIN)/python -m companion measure quantization --from runs/imdb --output runs/quantization
	cp runs/quantization/record.json companion/results/quantization.json
	$(BIN)/python -m companion measure imdb --output runs/comparison
	cp runs/comparison/records/* companion/results/
	$(BIN)/python -m companion pretrain albert --output runs/albert --resume --checkpoint-every 1000 $(ALBERT)
	cp runs/albert/record.json companion/results/albert.json
	$(BIN)/python -m companion finetune imdb --from runs/albert --output runs/albert-imdb --resume
	cp runs/albert-imdb/record.json companion/results/albert-imdb.json
	$(BIN)/python -m companion finetune imdb --from runs/albert --start random --output runs/albert-random --resume
	cp runs/albert-random/record.json companion/results/albert-random.json
	test -e runs/albert-teacher/record.json || \
		$(BIN)/python -m companion label imdb --from runs/albert-imdb --output runs/albert-teacher
	cp runs/albert-teacher/record.json companion/results/albert-teacher.json
	$(BIN)/python -m companion finetune imdb --from runs/albert $(STUDENT) --training.epochs 1 \
		--output runs/albert-student --resume
	cp runs/albert-student/record.json companion/results/albert-student.json
	$(BIN)/python -m companion finetune imdb --from runs/albert $(STUDENT) --training.epochs 2 \
		--output runs/albert-student-2 --resume
	cp runs/albert-student-2/record.json companion/results/albert-student-2.json
	$(BIN)/python -m companion measure albert --output runs/study
	cp runs/study/records/* companion/results/
	$(BIN)/python -m companion measure positions --output runs/positions
	cp runs/positions/record.json companion/results/positions.json

mutants: .venv/installed-book,test  ## Break the modules one change at a time, and list the changes that no test sees
	$(BIN)/python tests/mutants.py

lint: .venv/installed-book,test  ## Check style and types
	$(BIN)/ruff check companion tests book benchmarks
	$(BIN)/ruff format --check companion tests book/_tools benchmarks
	$(BIN)/pyright
	$(BIN)/codespell

clean:  ## Remove the site, the cache of executed chapters and the tools' caches
	rm -rf _build .pytest_cache .ruff_cache .hypothesis

# Importing pyplot builds matplotlib's font cache, which would otherwise announce itself in a chapter's output.
.venv/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e ".[$*]"
	$(BIN)/python -c "import matplotlib.pyplot"
	touch $@
