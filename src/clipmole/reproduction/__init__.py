"""The paper's experiment from its data to its table: `train`, `evaluate` twice, and the results beside the paper's.

In: the folder that holds the data sets, and a preset `paper-*`. Out: `plan` says what is there and what it will take;
`run` trains, measures and writes; `table` sets the results beside the published ones. It knows only the functions of
`api` for training and measuring.
"""
