"""Services for every folder: files written whole or not at all, reading ahead, progress, seeds, the environment.

In: paths, functions, numbers. Out: files, results in order, random generators. It knows nothing of images, models or
data sets.
"""
