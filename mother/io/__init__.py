"""From files to tensors: where the files of a model are, which tensors they hold, how single ones are read.

Nothing of a checkpoint is executed, and nothing of it stays in memory.
May be imported from everywhere above; imports `mother.numeric` and `mother.errors`.
"""
