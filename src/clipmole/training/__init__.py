"""From labelled samples to an adapter directory: one loop for every method, the prefix cache, comparisons.

In: samples and a `TrainConfig`. Out: adapter directories and their records. It knows nothing of the command line.
"""
