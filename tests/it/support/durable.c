// Stands between the program and the C library (LD_PRELOAD) and writes down, in the file DURABLE_LOG, in which order things
// happen that a power cut tells apart: `write` and `sync` of SQLite's log, and `move` of a file into processed/.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static void note(const char *line) {
    int log = open(getenv("DURABLE_LOG"), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0666);
    syscall(SYS_write, log, line, strlen(line));
    close(log);
}

static int is_open_as(int fd, const char *ending) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path), wanted = strlen(ending);
    return length >= wanted && memcmp(path + length - wanted, ending, wanted) == 0;
}

static int is_log(int fd) { return is_open_as(fd, "-wal"); }

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *buffer, size_t count) {
    REAL(write);
    if (is_log(fd)) note("write\n");
    return real(fd, buffer, count);
}

ssize_t pwrite(int fd, const void *buffer, size_t count, off_t offset) {
    REAL(pwrite);
    if (is_log(fd)) note("write\n");
    return real(fd, buffer, count, offset);
}

ssize_t pwrite64(int fd, const void *buffer, size_t count, off64_t offset) {
    REAL(pwrite64);
    if (is_log(fd)) note("write\n");
    return real(fd, buffer, count, offset);
}

int fsync(int fd) {
    REAL(fsync);
    int done = real(fd);
    if (is_log(fd)) note("sync\n");
    return done;
}

int fdatasync(int fd) {
    REAL(fdatasync);
    int done = real(fd);
    if (is_log(fd)) note("sync\n");
    return done;
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    REAL(renameat);
    if (is_open_as(to_dir, "/processed")) note("move\n");
    return real(from_dir, from, to_dir, to);
}
