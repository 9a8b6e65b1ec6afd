"""The method of Horwitz, Shul and Hoshen (arXiv 2405.18432), and nothing else.

Statistics and distances (section 4 of the paper), direction by kurtosis, clusters, the merged cost and its tree.
Imports `mother.graph` and what is below it; nothing of `mother.evidence` or `mother.heritage`.
"""
