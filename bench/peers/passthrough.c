/*
 * passthrough FILE MOUNTPOINT: one directory with one file, every request handed on to FILE.
 *
 * The least a FUSE server in C can do with libfuse's low-level interface and its threaded loop: what FUSE itself
 * costs. Inode 1 is the directory, inode 2 the file. FILE is read and written through the page cache, also for
 * clients with O_DIRECT, as the other servers do. Reads are spliced from it where the kernel can.
 */
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_INO 2
#define CACHE_SECONDS 3600.0
#define MAX_THREADS 10

static int file_fd;
static const char *file_name;

static int attributes(fuse_ino_t ino, struct stat *st)
{
    if (fstat(file_fd, st) == -1)
        return errno;
    st->st_ino = ino;
    if (ino == FUSE_ROOT_ID) {
        st->st_mode = S_IFDIR | 0755;
        st->st_nlink = 2;
        st->st_size = 0;
    }
    return 0;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct fuse_entry_param entry = {.ino = FILE_INO, .attr_timeout = CACHE_SECONDS, .entry_timeout = CACHE_SECONDS};
    int error = ENOENT;

    if (parent == FUSE_ROOT_ID && strcmp(name, file_name) == 0)
        error = attributes(FILE_INO, &entry.attr);
    if (error)
        fuse_reply_err(req, error);
    else
        fuse_reply_entry(req, &entry);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct stat st;
    int error = attributes(ino, &st);

    (void)fi;
    if (error)
        fuse_reply_err(req, error);
    else
        fuse_reply_attr(req, &st, CACHE_SECONDS);
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    (void)ino;
    fuse_reply_open(req, fi);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
    struct fuse_bufvec data = FUSE_BUFVEC_INIT(size);

    (void)ino;
    (void)fi;
    data.buf[0].flags = FUSE_BUF_IS_FD | FUSE_BUF_FD_SEEK;
    data.buf[0].fd = file_fd;
    data.buf[0].pos = offset;
    fuse_reply_data(req, &data, FUSE_BUF_SPLICE_MOVE);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
                     struct fuse_file_info *fi)
{
    ssize_t written = pwrite(file_fd, data, size, offset);

    (void)ino;
    (void)fi;
    if (written == -1)
        fuse_reply_err(req, errno);
    else
        fuse_reply_write(req, (size_t)written);
}

static void do_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    int failed = datasync ? fdatasync(file_fd) : fsync(file_fd);

    (void)ino;
    (void)fi;
    fuse_reply_err(req, failed ? errno : 0);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = do_lookup,
    .getattr = do_getattr,
    .open = do_open,
    .read = do_read,
    .write = do_write,
    .fsync = do_fsync,
};

static int serve(struct fuse_session *session, const char *mountpoint)
{
    struct fuse_loop_config *config;
    int status = 1;

    if (fuse_set_signal_handlers(session) != 0)
        return 1;
    if (fuse_session_mount(session, mountpoint) == 0) {
        config = fuse_loop_cfg_create();
        fuse_loop_cfg_set_max_threads(config, MAX_THREADS);
        status = fuse_session_loop_mt(session, config);
        fuse_loop_cfg_destroy(config);
        fuse_session_unmount(session);
    }
    fuse_remove_signal_handlers(session);
    return status;
}

int main(int argc, char **argv)
{
    char *words[] = {argv[0], "-o", "fsname=passthrough"};
    struct fuse_args args = FUSE_ARGS_INIT(3, words);
    struct fuse_session *session;
    const char *slash;
    int status;

    if (argc != 3) {
        fprintf(stderr, "usage: passthrough FILE MOUNTPOINT\n");
        return 2;
    }
    file_fd = open(argv[1], O_RDWR);
    if (file_fd == -1) {
        perror(argv[1]);
        return 1;
    }
    slash = strrchr(argv[1], '/');
    file_name = slash ? slash + 1 : argv[1];
    session = fuse_session_new(&args, &operations, sizeof(operations), NULL);
    if (session == NULL)
        return 1;
    status = serve(session, argv[2]);
    fuse_session_destroy(session);
    return status;
}
