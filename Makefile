# make recover       set up, grow a small collection once, recover it by both methods, print the table
# make recover-all   the same with all 405 models of the mini splits, then the 137 of mini_hub and their score
# make test          set up, run the tests that take seven minutes in all on 2 cores
# make test-all      set up, run the others, too: kills, browsers, large sizes
# make lint          set up, check style
# make bench         set up, run the slow and statistical checks
# make imgs          copy the figures that docs/ shows from the results
# make clean         forget the results (the grown models stay)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN = .venv/bin/python
WORKERS ?= 2

.PHONY: recover recover-all test test-all lint bench imgs clean

# The official sequence on the splits $(1)_ft, $(1)_lora_v, $(1)_lora_f and $(1)_wild; K is $(2), and $(3) for the last.
define stages
	$(RUN) -m dataset.grow --splits $(1)_ft $(1)_lora_v $(1)_lora_f $(1)_wild
	$(RUN) get_vit_layer_statistics.py --model-graph $(1)_ft
	$(RUN) MoTHer_FullFT.py --model-graph $(1)_ft
	$(RUN) get_vit_layer_statistics.py --model-graph $(1)_wild
	$(RUN) MoTHer_FullFT.py --model-graph $(1)_wild
	$(RUN) MoTHer_LoRA.py --model-graphs $(1)_lora_v $(1)_lora_f
	$(RUN) clustering.py --no-lora --clusters $(2) --model-graph $(1)_ft
	$(RUN) clustering.py --no-lora --clusters $(3) --model-graph $(1)_wild
	$(RUN) clustering.py --lora --clusters $(2) --model-graph $(1)_lora_v
	$(RUN) clustering.py --lora --clusters $(2) --model-graph $(1)_lora_f
	$(RUN) recover.py --quiet --manifest dataset/$(1)_wild.json --out results/$(1)_wild/report
	$(RUN) summarize.py --model-graphs $(1)_ft $(1)_lora_v $(1)_lora_f $(1)_wild
endef

recover: .venv/installed
	$(call stages,small,2,3)

# Where a target of mini_hub is missed it says so; that is no error of recovering.
recover-all: .venv/installed
	$(call stages,mini,5,10)
	$(RUN) -m dataset.grow --splits mini_hub
	-$(RUN) -m benchmarks.mini_hub

# Models that tests share are grown the first time, and kept in .cache/. `make test test-all` runs every test once.
test: .venv/installed
	$(RUN) -m pytest -n $(WORKERS) -m "not slow"

test-all: .venv/installed
	$(RUN) -m pytest -n $(WORKERS) -m slow

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: .venv/installed
	$(RUN) -m benchmarks

# The figures that docs/ shows, from the results.
imgs: recover-all
	cp results/mini_ft/figures/tree_1.png imgs/mini_ft_tree_1.png
	cp results/mini_lora_v/figures/distances.png imgs/mini_lora_v_distances.png
	cp results/mini_lora_v/figures/cluster_accuracy.png imgs/mini_lora_v_cluster_accuracy.png
	cp results/mini_wild/map/figures/tree_7.png imgs/mini_wild_tree.png
	$(RUN) -m benchmarks.screenshot

clean:
	rm -rf results

# The stamp is written last: an interrupted set-up starts again.
.venv/installed: requirements.txt
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch .venv/installed
