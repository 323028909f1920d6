"""Files that hold many images -> their members, one after another: the readers that `data` and `scan` share.

In: paths and addresses of tars and tables, names of data sets. Out: names, sizes and bytes, lazily, in an order that
is always the same. A container that is damaged or ends early gives its intact members and then raises an `ImageError`
of the container, so that a part is never taken for the whole. It knows nothing of labels, splits, scans or detectors.
"""
