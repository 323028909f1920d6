"""A file, bytes, a PIL image or an array -> upright RGB pixels -> crops; and the operations on pixels.

In: anything that holds an image. Out: arrays (H, W, 3) uint8. It knows nothing of models, labels or data sets.
"""
