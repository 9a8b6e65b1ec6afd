# make recover   set up, grow the mini splits once, run all stages on them, print the tables
# make test      set up, run the tests
# make lint      set up, check style
# make bench     set up, run the slow and statistical checks
# make imgs      copy the figures that README.md shows from the results
# make clean     forget the results (the grown models stay)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN = .venv/bin/python
SPLITS = mini_ft mini_lora_v mini_lora_f

.PHONY: recover test lint bench imgs clean

recover: .venv/installed
	$(RUN) -m dataset.grow --splits $(SPLITS) mini_wild
	$(RUN) get_vit_layer_statistics.py --model-graph mini_ft
	$(RUN) clustering.py --method mother --no-lora --model-graph mini_ft
	$(RUN) clustering.py --method mother --lora --model-graph mini_lora_v
	$(RUN) clustering.py --method mother --lora --model-graph mini_lora_f
	$(RUN) MoTHer_FullFT.py --method mother --model-graph mini_ft
	$(RUN) MoTHer_LoRA.py --method mother --model-graphs mini_lora_v mini_lora_f
	$(RUN) get_vit_layer_statistics.py --model-graph mini_wild
	$(RUN) clustering.py --method mother --no-lora --clusters 10 --model-graph mini_wild
	$(RUN) MoTHer_FullFT.py --method mother --model-graph mini_wild
	$(RUN) MoTHer_FullFT.py --model-graph mini_ft
	$(RUN) MoTHer_LoRA.py --model-graphs mini_lora_v mini_lora_f mini_wild
	$(RUN) summarize.py --model-graphs $(SPLITS) mini_wild

test: .venv/installed
	$(RUN) -m pytest

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: .venv/installed
	$(RUN) -m benchmarks

# The figures that README.md shows, from the results.
imgs: recover
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
