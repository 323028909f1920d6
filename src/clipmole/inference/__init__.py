"""From an image to a logit and a verdict: the `Detector`, the runtimes it runs in, exports, and maps that explain it.

In: images and a detector's name. Out: `Detection` records. It knows nothing of labels or data sets.
"""
