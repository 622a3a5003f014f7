// Stands between a program and the system's calls that change files (LD_PRELOAD): counts them, kills the process at one
// of them, lets them fail or write less than they were given, and writes them down.
//
// A trace is one record a call: four int32 (what, descriptor or flags, bytes of the first text, bytes of the second),
// then both. Calls are counted and fail only while the shim is armed, and only where they create or change a file.

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum Call { OPEN, WRITE, SYNC, RENAME, UNLINK, MKDIR, RMDIR, CLOSE };
enum Fault { NONE, KILL_BEFORE, KILL_AFTER, FAIL_ONCE, FAIL_ALWAYS };

static const int DESCRIPTORS = 4096;
static bool armed, ours[DESCRIPTORS];
static long calls, at;
static int fault, error_number, failing, trace = -1;
static size_t longest;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

extern "C" {

// From here on call number `number` (0, 1, ...) meets a fault. failing: the calls (bits) that an error may come from.
// longest_write: bytes that a write takes at most (0: all). trace_descriptor: where calls are written down (-1:
// nowhere).
void prenorm_arm(long number, int kind, int error, int calls_that_fail, size_t longest_write, int trace_descriptor) {
    armed = true, calls = 0, at = number, fault = kind, error_number = error, failing = calls_that_fail;
    longest = longest_write, trace = trace_descriptor;
    memset(ours, 0, sizeof ours);
}

// Back to normal; gives how many calls there were.
long prenorm_disarm() {
    armed = false;
    return calls;
}
}

template <typename Function>
static Function real(const char *name) {
    return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

static void die() {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

// Whether the call is to fail; dies where it is the one to die before. `last` says whether to die after it.
static bool meets(Call call, bool *last) {
    *last = false;
    if (!armed) return false;
    long number = calls++;
    if (fault == KILL_BEFORE && number == at) die();
    *last = fault == KILL_AFTER && number == at;
    bool fails = (fault == FAIL_ONCE && number == at) || (fault == FAIL_ALWAYS && number >= at);
    if (fails && (failing >> call & 1)) {
        errno = error_number;
        return true;
    }
    return false;
}

static void write_down(Call call, int number, const char *first, size_t bytes, const char *second) {
    if (!armed || trace < 0) return;
    int kept = errno, head[4] = {call, number, (int)bytes, second ? (int)strlen(second) : 0};
    struct iovec parts[3] = {{head, sizeof head}, {(void *)first, bytes}, {(void *)second, (size_t)head[3]}};
    pthread_mutex_lock(&lock);
    syscall(SYS_writev, trace, parts, 3);
    pthread_mutex_unlock(&lock);
    errno = kept;
}

// The path that a name stands for in the folder of a descriptor.
static const char *resolved(int folder, const char *name, char *place) {
    if (name[0] == '/' || folder == AT_FDCWD) return name;
    char link[64], base[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, base, sizeof base - 1);
    snprintf(place, 8192, "%.*s/%s", (int)(length > 0 ? length : 0), base, name);
    return place;
}

static int opened(int folder, const char *name, int flags, mode_t mode) {
    bool writes = flags & (O_WRONLY | O_RDWR | O_CREAT), last = false;
    if (writes && meets(OPEN, &last)) return -1;
    int file = (int)syscall(SYS_openat, folder, name, flags | O_LARGEFILE, mode);
    if (file >= 0 && armed) {
        char place[8192];
        const char *path = resolved(folder, name, place);
        if (file < DESCRIPTORS) ours[file] = writes;
        write_down(OPEN, file, path, strlen(path), writes ? "w" : "");
    }
    if (last) die();
    return file;
}

static mode_t mode_in(int flags, va_list arguments) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
}

extern "C" {

#define OPENS(name, folder, ...)                                                                                       \
    int name(__VA_ARGS__, int flags, ...) {                                                                            \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = mode_in(flags, rest);                                                                            \
        va_end(rest);                                                                                                  \
        return opened(folder, path, flags, mode);                                                                      \
    }
OPENS(open, AT_FDCWD, const char *path)
OPENS(open64, AT_FDCWD, const char *path)
OPENS(openat, folder, int folder, const char *path)
OPENS(openat64, folder, int folder, const char *path)

ssize_t write(int file, const void *data, size_t count) {
    bool last = false, counts = armed && file >= 0 && file < DESCRIPTORS && ours[file];
    if (counts) {
        if (meets(WRITE, &last)) return -1;
        if (longest && count > longest) count = longest;
        if (last) count = (count + 1) / 2;
    }
    ssize_t written = syscall(SYS_write, file, data, count);
    if (counts && written > 0) write_down(WRITE, file, (const char *)data, (size_t)written, nullptr);
    if (last) die();
    return written;
}

static int synced(int file, const char *name) {
    bool last;
    if (meets(SYNC, &last)) return -1;
    int result = real<int (*)(int)>(name)(file);
    if (result == 0) write_down(SYNC, file, "", 0, nullptr);
    if (last) die();
    return result;
}

int fsync(int file) { return synced(file, "fsync"); }
int fdatasync(int file) { return synced(file, "fdatasync"); }

int renameat(int from, const char *source, int to, const char *target) {
    bool last;
    if (meets(RENAME, &last)) return -1;
    int result = (int)syscall(SYS_renameat2, from, source, to, target, 0);
    char one[8192], other[8192];
    const char *path = resolved(from, source, one);
    if (result == 0) write_down(RENAME, 0, path, strlen(path), resolved(to, target, other));
    if (last) die();
    return result;
}

int rename(const char *source, const char *target) { return renameat(AT_FDCWD, source, AT_FDCWD, target); }

int unlinkat(int folder, const char *name, int flags) {
    bool last, is_folder = flags & AT_REMOVEDIR;
    Call call = is_folder ? RMDIR : UNLINK;
    if (meets(call, &last)) return -1;
    int result = (int)syscall(SYS_unlinkat, folder, name, flags);
    char place[8192];
    const char *path = resolved(folder, name, place);
    if (result == 0) write_down(call, 0, path, strlen(path), nullptr);
    if (last) die();
    return result;
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
    bool last;
    if (meets(MKDIR, &last)) return -1;
    int result = (int)syscall(SYS_mkdirat, folder, name, mode);
    char place[8192];
    const char *path = resolved(folder, name, place);
    if (result == 0) write_down(MKDIR, 0, path, strlen(path), nullptr);
    if (last) die();
    return result;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int close(int file) {
    if (armed && file >= 0 && file < DESCRIPTORS) {
        ours[file] = false;
        write_down(CLOSE, file, "", 0, nullptr);
    }
    return (int)syscall(SYS_close, file);
}
}
