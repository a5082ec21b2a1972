/* lseek and fallocate for pyfuse3, which has neither: see more_operations.py, which is the only one to import this.

   This is loaded before pyfuse3, with its symbols for all, so that the `fuse_session_new` that pyfuse3 calls is the one
   below: the rule of the dynamic linker by which LD_PRELOAD works, within one process. It fills two entries of a copy of
   the table, and calls that of libfuse. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if __has_include(<fuse3/fuse_lowlevel.h>)
#define FUSE_USE_VERSION 35
#include <fuse3/fuse_lowlevel.h>
#define HAS_HEADER 1
#endif

#ifdef HAS_HEADER

#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default"), used))

/* Larger than any table yet: what is copied has its own size. */
#define MOST_BYTES 4096

static PyObject *on_lseek, *on_fallocate;
static struct fuse_session *session;
static const char *why_not = "pyfuse3 makes its session in another way";

static union {
    struct fuse_lowlevel_ops known;
    char bytes[MOST_BYTES];
} table;

/* A request that nobody can take is answered at once: it would else wait for ever. */
static void hand_over(fuse_req_t req, PyObject *handler, const char *format, ...)
{
    PyGILState_STATE state = PyGILState_Ensure();
    va_list arguments;
    va_start(arguments, format);
    PyObject *built = Py_VaBuildValue(format, arguments), *answer = NULL;
    va_end(arguments);
    if (built)
        answer = PyObject_Call(handler, built, NULL);
    if (!answer) {
        PyErr_WriteUnraisable(handler);
        fuse_reply_err(req, EIO);
    }
    Py_XDECREF(answer);
    Py_XDECREF(built);
    PyGILState_Release(state);
}

static void handle_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *info)
{
    (void)ino;
    hand_over(req, on_lseek, "(KKLi)", (unsigned long long)(uintptr_t)req, (unsigned long long)info->fh,
              (long long)offset, whence);
}

static void handle_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t length,
                             struct fuse_file_info *info)
{
    (void)ino;
    hand_over(req, on_fallocate, "(KKiLL)", (unsigned long long)(uintptr_t)req, (unsigned long long)info->fh, mode,
              (long long)offset, (long long)length);
}

/* The table to be used in the place of `given`; NULL, and the reason, when that stays as it is. */
static const struct fuse_lowlevel_ops *filled(const struct fuse_lowlevel_ops *given, size_t bytes)
{
    if (!on_lseek || !on_fallocate)
        why_not = "nobody handles them";
    else if (session)
        why_not = "there is a session already";
    else if (bytes < offsetof(struct fuse_lowlevel_ops, lseek) + sizeof given->lseek || bytes > MOST_BYTES)
        why_not = "the table of operations has an unknown size";
    else if (given->lseek || given->fallocate)
        why_not = "pyfuse3 has operations of its own for it";
    else {
        memcpy(table.bytes, given, bytes);
        table.known.lseek = handle_lseek;
        table.known.fallocate = handle_fallocate;
        return &table.known;
    }
    return NULL;
}

static struct fuse_session *noted(struct fuse_session *made, int is_filled)
{
    if (made && is_filled) {
        session = made;
        why_not = NULL;
    }
    return made;
}

typedef struct fuse_session *(*new_session_fn)(void *, const struct fuse_lowlevel_ops *, size_t, void *);
typedef struct fuse_session *(*new_versioned_fn)(void *, const struct fuse_lowlevel_ops *, size_t, void *, void *);

/* By these names, which the header may have made something else of. */
EXPORTED struct fuse_session *new_session(void *, const struct fuse_lowlevel_ops *, size_t, void *)
    __asm__("fuse_session_new");
EXPORTED struct fuse_session *new_versioned(void *, const struct fuse_lowlevel_ops *, size_t, void *, void *)
    __asm__("_fuse_session_new");

struct fuse_session *new_session(void *args, const struct fuse_lowlevel_ops *ops, size_t bytes, void *data)
{
    new_session_fn real = (new_session_fn)dlsym(RTLD_NEXT, "fuse_session_new");
    const struct fuse_lowlevel_ops *more = filled(ops, bytes);
    return real ? noted(real(args, more ? more : ops, bytes, data), more != NULL) : NULL;
}

/* libfuse from 3.17 on. */
struct fuse_session *new_versioned(void *args, const struct fuse_lowlevel_ops *ops, size_t bytes, void *version,
                                   void *data)
{
    new_versioned_fn real = (new_versioned_fn)dlsym(RTLD_NEXT, "_fuse_session_new");
    const struct fuse_lowlevel_ops *more = filled(ops, bytes);
    return real ? noted(real(args, more ? more : ops, bytes, version, data), more != NULL) : NULL;
}

static PyObject *handle(PyObject *module, PyObject *args)
{
    PyObject *lseek_handler, *fallocate_handler;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO", &lseek_handler, &fallocate_handler))
        return NULL;
    Py_INCREF(lseek_handler);
    Py_INCREF(fallocate_handler);
    Py_XSETREF(on_lseek, lseek_handler);
    Py_XSETREF(on_fallocate, fallocate_handler);
    Py_RETURN_NONE;
}

static PyObject *why_not_filled(PyObject *module, PyObject *nothing)
{
    (void)module, (void)nothing;
    if (!why_not)
        Py_RETURN_NONE;
    return PyUnicode_FromString(why_not);
}

static PyObject *reply_error(PyObject *module, PyObject *args)
{
    unsigned long long req;
    int code;
    (void)module;
    if (!PyArg_ParseTuple(args, "Ki", &req, &code))
        return NULL;
    return PyLong_FromLong(fuse_reply_err((fuse_req_t)(uintptr_t)req, code));
}

static PyObject *reply_offset(PyObject *module, PyObject *args)
{
    unsigned long long req;
    long long offset;
    (void)module;
    if (!PyArg_ParseTuple(args, "KL", &req, &offset))
        return NULL;
    return PyLong_FromLong(fuse_reply_lseek((fuse_req_t)(uintptr_t)req, offset));
}

static PyMethodDef methods[] = {
    {"handle", handle, METH_VARARGS, "Whom lseek and fallocate are handed to, before the session is made."},
    {"why_not", why_not_filled, METH_NOARGS, "None when the session has them; else the reason."},
    {"reply_error", reply_error, METH_VARARGS, "Answer a request with an errno, 0 for success."},
    {"reply_offset", reply_offset, METH_VARARGS, "Answer an lseek."},
    {NULL, NULL, 0, NULL},
};

#else

static PyMethodDef methods[] = {{NULL, NULL, 0, NULL}};

#endif

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "snapfs.fuse._operations", NULL, -1, methods};

PyMODINIT_FUNC PyInit__operations(void)
{
    return PyModule_Create(&module);
}
