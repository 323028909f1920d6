"""Files that hold many images -> their members, one after the other: what `data` and `scan` both read with.

In: paths and addresses of tars and tables, names of data sets. Out: names, sizes and bytes, lazily, in an order that
is always the same. A container that is damaged or ends early gives what is whole and then raises an `ImageError` of
the container, so that no part of one passes for the whole. It knows nothing of labels, splits, scans or detectors.
"""
