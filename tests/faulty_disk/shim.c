/* Lets calls on files below a folder fail, in a process that has loaded this library before all others (LD_PRELOAD).
 *
 * What fails is in a block of memory that is shared with the test: the file named by FAULTY_DISK_CONTROL.
 * tests/faulty_disk/__init__.py compiles this file and writes the block.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE = 2, SYNC = 4, RENAME = 8, READ = 16 };
enum { FAIL = 0, SHORT = 1, FLIP = 2 };

/* As `_BLOCK` in __init__.py: the calls of index `skip` up to `skip + times` fail, of those that `operations` name. */
struct block {
    int32_t operations, mode, error, skip, times, seen, failed;
    char folder[512], part[64];
};

static struct block *block;

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void load(void) {
    const char *control = getenv("FAULTY_DISK_CONTROL");
    int file = control ? syscall(SYS_openat, AT_FDCWD, control, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = mmap(NULL, sizeof(struct block), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) block = found;
    syscall(SYS_close, file);
}

static int strikes(int operation, const char *path) {
    if (!block || !(block->operations & operation)) return 0;
    if (strncmp(path, block->folder, strlen(block->folder)) || !strstr(path, block->part)) return 0;
    int index = __sync_fetch_and_add(&block->seen, 1);
    if (index < block->skip || index - block->skip >= block->times) return 0;
    __sync_fetch_and_add(&block->failed, 1);
    return 1;
}

static int strikes_file(int operation, int file) {
    if (!block || !(block->operations & operation)) return 0;
    char name[32], path[1024];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, name, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strikes(operation, path);
}

static int failed(void) {
    errno = block->error;
    return -1;
}

/* How many bytes to transfer when a call is struck; nothing is left of one byte. */
static size_t part_of(size_t count) { return block->mode == SHORT ? count / 2 : 0; }

static void flip(void *bytes, ssize_t count) {
    if (count > 0) ((unsigned char *)bytes)[count / 2] ^= 1;
}

#define READS(file, bytes, count, real, short_real)                                                                    \
    if (!strikes_file(READ, file)) return real;                                                                        \
    if (block->mode == FAIL) return failed();                                                                          \
    size_t part = part_of(count);                                                                                      \
    if (block->mode == SHORT) return part ? short_real : 0;                                                            \
    ssize_t got = real;                                                                                                \
    flip(bytes, got);                                                                                                  \
    return got;

ssize_t read(int file, void *bytes, size_t count) {
    READS(file, bytes, count, NEXT(read)(file, bytes, count), NEXT(read)(file, bytes, part))
}

ssize_t pread(int file, void *bytes, size_t count, off_t at) {
    READS(file, bytes, count, NEXT(pread)(file, bytes, count, at), NEXT(pread)(file, bytes, part, at))
}

ssize_t pread64(int file, void *bytes, size_t count, off64_t at) { return pread(file, bytes, count, at); }

size_t (fread_unlocked)(void *bytes, size_t size, size_t count, FILE *stream) {
    if (!strikes_file(READ, fileno(stream))) return NEXT(fread_unlocked)(bytes, size, count, stream);
    if (block->mode == FAIL) {
        stream->_flags |= 0x20; /* _IO_ERR_SEEN: what ferror() asks for */
        errno = block->error;
        return 0;
    }
    size_t got = NEXT(fread_unlocked)(bytes, size, block->mode == SHORT ? count / 2 : count, stream);
    if (block->mode == FLIP) flip(bytes, got * size);
    return got;
}

#define WRITES(file, count, real, short_real)                                                                          \
    if (!strikes_file(WRITE, file)) return real;                                                                       \
    size_t part = part_of(count);                                                                                      \
    return part ? short_real : failed();

ssize_t write(int file, const void *bytes, size_t count) {
    WRITES(file, count, NEXT(write)(file, bytes, count), NEXT(write)(file, bytes, part))
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) {
    WRITES(file, count, NEXT(pwrite)(file, bytes, count, at), NEXT(pwrite)(file, bytes, part, at))
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) { return pwrite(file, bytes, count, at); }

int ftruncate(int file, off_t length) {
    return strikes_file(WRITE, file) ? failed() : NEXT(ftruncate)(file, length);
}

int fsync(int file) { return strikes_file(SYNC, file) ? failed() : NEXT(fsync)(file); }

int fdatasync(int file) { return strikes_file(SYNC, file) ? failed() : NEXT(fdatasync)(file); }

int rename(const char *old, const char *new) { return strikes(RENAME, new) ? failed() : NEXT(rename)(old, new); }

int link(const char *old, const char *new) { return strikes(RENAME, new) ? failed() : NEXT(link)(old, new); }

int unlink(const char *path) { return strikes(RENAME, path) ? failed() : NEXT(unlink)(path); }

static int mode_of(int flags, va_list arguments) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, int) : 0; }

#define OPENS(name)                                                                                                    \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list arguments;                                                                                             \
        va_start(arguments, flags);                                                                                    \
        int mode = mode_of(flags, arguments);                                                                          \
        va_end(arguments);                                                                                             \
        return strikes(OPEN, path) ? failed() : NEXT(name)(path, flags, mode);                                         \
    }

OPENS(open)
OPENS(open64)
