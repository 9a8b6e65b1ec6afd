"""An index of many models: built once, grown, shared; searched for what one model is made from; traced as a whole.

python index.py build MODELS --to INDEX                  what recover.py takes, and --hub-list FILE of repositories
python index.py search MODEL --in INDEX                  its nearest relatives, with kind, arrow and probability
python index.py graph --in INDEX --to RESULT             the Model Graph of everything in it, as Parquet and JSON
"""

from mother.cli.index import main

if __name__ == "__main__":
    main(name="index.py")
