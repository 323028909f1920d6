"""What serves every folder: files written whole or not at all, reading ahead, progress, seeds, the environment.

In: paths, functions, numbers. Out: the same, done safely. It knows nothing of images, models or data sets.
"""
