"""The map of used blocks: which blocks of an image hold something, read from the image's own filesystems.

    scan            the whole image -> ImageMap
      regions       what it consists of: table, partitions, filesystems
        probe       what is it? (libblkid)
        partitions  MBR, GPT; partition_traces: a table where a filesystem seems to be
      readers       kind of filesystem -> reader
        ext xfs btrfs ntfs fat exfat swap     each: read_free_map(source, frozen_by_us=...) -> FreeMap or MapError
      fold          free units of a filesystem -> free blocks of the image
    domain, draw, terminal, cells             the map for other programs and for the eye

The layout of each format stands in a `*_layout` module of its own, with the specification it was taken from.
"""
