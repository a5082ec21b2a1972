"""What happens to an instance or a backup, told to programs of the user (`--on-event DIR`).

Every executable of DIR, in the order of their names, is called with the name of the event and with facts about it in
its environment. It is a hook as those around a freeze are (`snapfs.freezing.hooks`), but nothing depends on it: one
that fails, or takes too long, is named and that is all.

Of an instance the supervisor has them called, in a process of its own: a hook may read the views, which the servers
have to answer, and one that hangs keeps nobody.
"""
