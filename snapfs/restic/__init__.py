"""Backups in a repository of restic, and so in whatever it stores to.

tool       the commands of restic that are needed, and what they say
archive    what it gives back: a tar of chunks, as the bytes of an image
"""
