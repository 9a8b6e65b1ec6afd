"""Anybody's models in, their family tree out. The same as the command `mother` of the installed package.

python recover.py PATH_OR_REPO [PATH_OR_REPO ...]        folders, weight files, folders of models, owner/name
python recover.py --manifest file.json | --author ORG | --collection SLUG
python recover.py MODELS --audit                         do cards and configurations tell the truth? see --fail-on
python recover.py add MODEL --to results/recover         one more model; the others are not read again
python recover.py explain A B --to results/recover       two models: related, how, which came first, how sure
"""

from mother.cli.commands import main

if __name__ == "__main__":
    main(default="recover", name="recover.py")
