"""What is served, whoever asks for it: the live image, and the image as it was at the cut.

A front (`snapfs.fuse`) takes requests and gives answers in its own terms, and has no part in what they mean; another
one may stand beside it. Nothing here knows a front.
"""
