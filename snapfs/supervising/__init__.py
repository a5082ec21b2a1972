"""The supervisor: starts the servers of one image, ends them together, and leaves nothing behind.

    starting   both views answer -> running; a server fails -> everything is undone, the reason reported
    running    a view is unmounted by whomever -> the other one is unmounted too; while it is busy it goes on
               alone. SIGTERM, SIGINT: both are unmounted, busy or not, after what was written to the live view,
               or to filesystems mounted from it, is in the image
    ending     the live server ends what is under way; then compactor, snapshot server, live server go, in this
               order, so that nothing waits for one that is gone; then the store is removed, unless the
               user named it or a server died: then the next mount carries its snapshot on

A compactor or a snapshot server that dies is started again, if need be after a while (see `servers.restarts`);
meanwhile the live view goes on without it, and status says so. Only the death of the live server ends the instance.

supervisor   waits for all of them, and says what follows from what
running      the servers that run; missing: those that died; views: what of both is mounted
caller       who mounts, and is told once; signals: who ends it all; ending: how
"""
