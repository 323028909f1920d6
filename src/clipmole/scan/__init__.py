"""Many images -> a Parquet data set of what a detector says of each, on this machine or on Ray's.

In: folders, patterns, lists, shards, tables, data sets, addresses of buckets. Out: a folder with one row an image and
`scan.json`, and a page. It does what is missing, so it can be killed at any time and started again. It
reads as listing -> containers -> scorer -> parts, and knows nothing of labels or training.
"""
