"""Everything at rest for the instant of a cut.

hooks, guest_agent    programs and guests that are asked to quiet themselves
live_filesystems      which filesystems lie on the live view, and through what; live_parts, live_writers: who else
fsfreeze              the two ioctls, and what must never be frozen
plan                  what is to be frozen, in order, and what is not, with the reasons; everything is open
window                watchdog, freeze, cut, thaw: as little as can be
watchdog              thaws when the command does not
grace_period          has the kernel not take its time
"""
