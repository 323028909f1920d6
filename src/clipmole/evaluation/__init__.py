"""How good detectors are: scores of labelled images, protocols, estimates with intervals, thresholds set again.

In: detectors and labelled samples. Out: reports as records. It writes no page and knows nothing of training.
"""
