"""The terminal: flags, progress, tables, and the commands of `mother`.

The only place that parses flags and prints.
May import everything; only scripts import it.
"""

from mother.cli.signals import stoppable_while_starting

stoppable_while_starting()
