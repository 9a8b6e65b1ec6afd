"""What the paper's scripts call: recover a whole manifest by one method, score it, keep and draw the results.

The two methods meet here for the first time, each in a file of its own.
Imports every wing below; nothing of `mother.collection`, `mother.report` or `mother.cli`.
"""
