"""Backups as snapshots of an image in a Ceph pool, by Ceph's own `rbd`.

stream     the diff that `rbd import-diff` takes and `rbd export-diff` gives
tool       the commands of `rbd` that are needed, and what they say
"""
