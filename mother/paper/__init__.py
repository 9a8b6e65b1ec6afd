"""The method of Horwitz, Shul and Hoshen (arXiv 2405.18432), and nothing else.

Each step of the paper is one function: the statistics file `layer_statistics.layer_rows`, the distances l_FT
`distances.minmax_distance` and l_LoRA `ranks.pairwise_rank`, kurtosis `statistics.kurtosis`, its direction T
`direction.kurtosis_direction`, clusters `clusters.ward_clusters`, the merged cost M `tree.merged_cost` and its tree
`tree.recover_tree`.
Imports `mother.graph` and what is below it; nothing of `mother.evidence` or `mother.heritage`.
"""
