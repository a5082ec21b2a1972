"""The processes of one instance, but for their supervisor.

instance     what they all have: open files, mappings, bells
start        a server as its supervisor sees it; process, pipe: how it ends, what it says
live         owns the state and answers the control socket (control, answers); with
             cuts (turns, hold), list_of_cuts, merges, maps (mapper, notes, free_file), releases, trouble, report,
             image_watch, write_out (syncer)
snapshot     shows the present cut; single_pass
compactor    from the ring to segments
"""
