// Stands between the program and the C library (LD_PRELOAD) and makes the disk misbehave for one file, the one whose path ends
// with DISK_FILE, for as long as a flag is there: a file in the directory DISK_FLAGS.
//
//   fails   reads fail with EIO from the byte DISK_FAILS_FROM on
//   waits   copies to another file system wait
//
// `ended` appears there when a read has met the end of the file.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_the_file(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    const char *name = getenv("DISK_FILE");
    size_t name_length = strlen(name);
    return length >= (ssize_t)name_length && memcmp(path + length - name_length, name, name_length) == 0;
}

static void flag_path(char *path, const char *flag) {
    snprintf(path, PATH_MAX, "%s/%s", getenv("DISK_FLAGS"), flag);
}

static int is_set(const char *flag) {
    char path[PATH_MAX];
    flag_path(path, flag);
    return access(path, F_OK) == 0;
}

static void set(const char *flag) {
    char path[PATH_MAX];
    flag_path(path, flag);
    close(open(path, O_CREAT | O_WRONLY, 0666));
}

static void wait_while_set(const char *flag) {
    while (is_set(flag)) {
        usleep(5000);
    }
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset) {
    static ssize_t (*real)(int, void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pread64");
    if (!is_the_file(fd)) return real(fd, buffer, count, offset);
    if (is_set("fails")) {
        off64_t from = atoll(getenv("DISK_FAILS_FROM"));
        if (offset >= from) {
            errno = EIO;
            return -1;
        }
        if (offset + (off64_t)count > from) count = from - offset;
    }
    ssize_t length = real(fd, buffer, count, offset);
    if (length == 0 && count > 0) set("ended");
    return length;
}

ssize_t copy_file_range(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t count, unsigned flags) {
    static ssize_t (*real)(int, off64_t *, int, off64_t *, size_t, unsigned);
    if (!real) real = dlsym(RTLD_NEXT, "copy_file_range");
    if (is_the_file(in)) wait_while_set("waits");
    return real(in, in_offset, out, out_offset, count, flags);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) {
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
    if (is_the_file(in)) wait_while_set("waits");
    return real(out, in, offset, count);
}
