"""A directory of backups: a full one, then increments, each a qcow2 that is backed by the one before.

layout     names and the form of NAME.cells (FORMAT.md)
table      NAME.cells: which cells a backup holds, and the digest of each
overlay    the whole image at one time: tables on top of each other
facts      NAME.json: what a backup is
chain      the backups of a directory in order, and chain.json, which lists them
turn       one that changes the directory, or several that read it
changes    what was written since the last backup, as far as anybody knows
choice     a full one or an increment, why, and which cells are read for it
left       what an interrupted one has left: given its names, gone on with, or removed
digests    the digests of a backup while it is made
target     the qcow2 of one while it is made: only cells that differ
making     one backup, from the first byte to its line in chain.json
reading    the image at one time, read back; one file of it alone
proving    which backups are whole, which are lost
survey     all of them by their facts, and what a prune leaves alone
pruning    backups that go, merged into the next
against    a backup compared with the snapshot that it was made of
"""
