"""Many images -> a Parquet data set with a detector's scores, on this machine or on Ray.

In: folders, patterns, lists, shards, tables, data sets, addresses of buckets. Out: a folder with one row per image and
`scan.json`, and a page. It computes only what is missing, so it can be killed at any time and started again. It
reads as listing -> containers -> scorer -> parts, and knows nothing of labels or training.
"""
