"""The paper's experiment from its data to its table: `train`, `evaluate` twice, and the results beside the paper's.

In: the folder that holds the data sets, and a preset `paper-*`. Out: `plan` says what is there and what the run will
cost; `run` trains, measures and writes; `table` sets the results beside the published ones. For training and
measuring it uses only the functions of `api`, and knows nothing of loops or estimates.
"""
