"""`python -m mother`, which is the command `mother`."""

from mother.cli.commands import main

main()
