/* Pages of mapped files that are gone: see faults.py, which is the only one to import this. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* A node is never freed, since a handler may be walking along the list in another thread; an unused one has no length.
   The version is odd while start and length change, so that nobody takes one of each. */
typedef struct Range {
    _Atomic(unsigned) version;
    _Atomic(uintptr_t) start;
    _Atomic(size_t) length;
    _Atomic(uint64_t) missing;
    struct Range *next;
} Range;

static _Atomic(Range *) ranges;
static _Atomic(uint64_t) missing_pages;
static struct sigaction before;
static _Atomic(int) was_passed_on;
static uintptr_t page_bytes;

static void set_range(Range *range, uintptr_t start, size_t length)
{
    atomic_fetch_add(&range->version, 1);
    atomic_store(&range->start, start);
    atomic_store(&range->length, length);
    atomic_fetch_add(&range->version, 1);
}

/* From the page that is gone to the end of its mapping there is nothing any more: a file is cut short from behind. */
static int replace_rest(Range *range, uintptr_t address)
{
    unsigned version = atomic_load(&range->version);
    uintptr_t start = atomic_load(&range->start), end = start + atomic_load(&range->length);
    if (address < start || address >= end || version & 1 || version != atomic_load(&range->version))
        return 0;
    uintptr_t page = address & ~(page_bytes - 1);
    int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    if (mmap((void *)page, end - page, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
        return 0;
    atomic_fetch_add(&range->missing, 1);
    atomic_fetch_add(&missing_pages, 1);
    return 1;
}

static int replace_any(uintptr_t address)
{
    for (Range *range = atomic_load(&ranges); range; range = range->next)
        if (replace_rest(range, address))
            return 1;
    return 0;
}

static void on_bus_error(int signal_no, siginfo_t *info, void *context)
{
    (void)context;
    int saved_errno = errno;
    if (info->si_code == BUS_ADRERR && replace_any((uintptr_t)info->si_addr)) {
        errno = saved_errno;
        return;
    }
    /* None of ours: it is met by whoever was asked before, who may ask us again; a second time it ends the process.
       An access is made once more by itself, a signal that was sent is not. */
    struct sigaction end = {.sa_handler = SIG_DFL};
    sigaction(signal_no, atomic_exchange(&was_passed_on, 1) ? &end : &before, NULL);
    if (info->si_code <= 0)
        raise(signal_no);
}

/* At each guard: whoever asked for the signal meanwhile (faulthandler does) is asked after us. */
static int be_asked_first(void)
{
    struct sigaction now, action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    sigemptyset(&action.sa_mask);
    if (sigaction(SIGBUS, NULL, &now))
        return -1;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_bus_error)
        return 0;
    before = now;
    return sigaction(SIGBUS, &action, NULL);
}

static PyObject *guard(PyObject *module, PyObject *memory)
{
    Py_buffer view;
    if (be_asked_first())
        return PyErr_SetFromErrno(PyExc_OSError);
    if (PyObject_GetBuffer(memory, &view, PyBUF_SIMPLE))
        return NULL;
    uintptr_t start = (uintptr_t)view.buf;
    size_t length = (size_t)view.len;
    PyBuffer_Release(&view);

    Range *range = atomic_load(&ranges);
    while (range && atomic_load(&range->length))
        range = range->next;
    int is_new = range == NULL;
    if (is_new) {
        range = calloc(1, sizeof *range);
        if (!range)
            return PyErr_NoMemory();
    }
    atomic_store(&range->missing, 0);
    set_range(range, start, length);
    if (is_new) {
        range->next = atomic_load(&ranges);
        atomic_store(&ranges, range);
    }
    return PyLong_FromVoidPtr(range);
}

static PyObject *unguard(PyObject *module, PyObject *number)
{
    Range *range = PyLong_AsVoidPtr(number);
    if (!range)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no such range");
    set_range(range, 0, 0);
    Py_RETURN_NONE;
}

static PyObject *missing_in(PyObject *module, PyObject *number)
{
    Range *range = PyLong_AsVoidPtr(number);
    if (!range)
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "no such range");
    return PyLong_FromUnsignedLongLong(atomic_load(&range->missing));
}

static PyMethodDef methods[] = {
    {"guard", guard, METH_O, "The number of the guard over a buffer; the memory must stay mapped until unguard."},
    {"unguard", unguard, METH_O, "Let go of what a number of guard stands for."},
    {"missing_in", missing_in, METH_O, "How often a page was missing in what a number of guard stands for."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "cow._faults", NULL, -1, methods};

PyMODINIT_FUNC PyInit__faults(void)
{
    PyObject *made = PyModule_Create(&module);
    if (!made)
        return NULL;
    PyObject *count = PyMemoryView_FromMemory((char *)&missing_pages, sizeof missing_pages, PyBUF_READ);
    if (!count || PyModule_AddObject(made, "missing_pages", count)) {
        Py_XDECREF(count);
        Py_DECREF(made);
        return NULL;
    }
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    return made;
}
