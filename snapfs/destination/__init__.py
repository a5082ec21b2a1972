"""Every path that is written for a user goes through here: backups, manifests, restored images, maps.

place        what the name leads to: a new file, an old one, a block device; never what is in use or being read
in_use       never an image or a store that somebody has
consent      nothing is replaced unasked, and --force says what
names        what is beside DEST until it is whole
unfinished   DEST.partial: made new, locked, not followed; renamed when it is whole
in_place     what is overwritten where it is: block devices, images that are restored
pair         DEST and its manifest appear together
access       as private as what was read
result       one whole small file: a map, a picture
directory    DEST/ : a name of its own for each backup
"""
