"""A snapshot, or a backup, as programs of others serve it.

nbdkit          a snapshot over NBD, for tools that read nothing else
dirty_bitmap    the same with what has changed since another one, by qemu-nbd
raw_file        a backup as a raw file, by qemu-storage-daemon
"""
