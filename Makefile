.PHONY: quickstart test lint bench docs links figures install install-test tagger-accuracy clean
BIN := .venv/bin
JOBS ?= 2  # processes of the test suite; each needs some 2 GB

quickstart: install  ## train four arms on text that is already here, end with a report
	$(BIN)/chronomask quickstart

test: install-test lint  ## everything that must hold before a change lands
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: install-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: install-test  ## speed, beside what people use today; stores the figures and makes docs/speed.md of them
	$(BIN)/python -m docs.speed_page --measure all

docs: install-test  ## the site, in build/docs; any warning fails it
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

links: install-test  ## links to other sites, which needs a network; those within the repository are checked by `make test`
	$(BIN)/python -m sphinx -q -b linkcheck -c docs -D root_doc=docs/index \
		-D include_patterns='README.md,CONTRIBUTING.md,CHANGELOG.md,docs/**' -D suppress_warnings=myst,toc . build/links

figures: install  ## draw the pictures of docs/ again
	$(BIN)/python docs/figures.py

install:  ## the package with all that its commands use
	@scripts/install.sh all

install-test:
	@scripts/install.sh test

tagger-accuracy: install  ## EWT=path/to/en_ewt-ud-test.conllu.gz
	$(BIN)/python -m chronomask.prepare.words.english.accuracy $(EWT)

clean:
	rm -rf .venv runs dist build
