/* libbmlib with host memory as device memory. It records calls, and injects faults. Variables it reads:
 *   FAKE_LOG      file that gets a line for each call: thread, call, arguments
 *   FAKE_FAULTS   call@n=what, separated by commas; n counts that call from 1. What: a status code, abort, segfault,
 *                 exit, hang, stop, kill, or exhausted (which prints what libbmlib prints, and exits)
 *   FAKE_MEMORY   bytes of device memory; bm_get_stat knows of none without it
 *   FAKE_TPU_US   microseconds that bm_get_profile counts for each launch; 0 without it, as on the simulator
 * Launched work happens when the thread that launched it synchronises, and not before.
 */
#define _GNU_SOURCE
#include "fake.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct bm_context {
    int number;
};

enum { PIECES = 1 << 16, WORKS = 4096 };

static struct {
    char *start;
    size_t size;
} pieces[PIECES];
static int piece_count;
static size_t memory_used;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static __thread struct {
    void (*work)(void *);
    void *what;
} works[WORKS];
static __thread int work_count;
static __thread unsigned long works_done;

static FILE *log_file(void) {
    static FILE *file;
    static bool looked;
    if (!looked) {
        const char *path = getenv("FAKE_LOG");
        file = path ? fopen(path, "a") : NULL;
        looked = true;
    }
    return file;
}

bool fake_logging(void) {
    return log_file() != NULL;
}

void fake_log(const char *format, ...) {
    FILE *file = log_file();
    if (!file) return;
    pthread_mutex_lock(&lock);
    fprintf(file, "%ld ", syscall(SYS_gettid));
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fflush(file);
    pthread_mutex_unlock(&lock);
}

static int happen(const char *what) {
    if (!strncmp(what, "abort", 5)) {
        puts("ASSERT info: the fake was told to abort");
        abort();
    }
    if (!strncmp(what, "segfault", 8)) raise(SIGSEGV);
    if (!strncmp(what, "exit", 4)) {
        puts("ASSERT info: the fake was told to exit");
        exit(255);
    }
    if (!strncmp(what, "exhausted", 9)) {
        puts("Memory exhausted: cannot find a slot");
        exit(255);
    }
    if (!strncmp(what, "kill", 4)) raise(SIGKILL);
    if (!strncmp(what, "stop", 4)) raise(SIGSTOP);
    if (!strncmp(what, "hang", 4)) sleep(1000);
    return atoi(what);
}

int fake_fault(const char *call) {
    enum { MOST = 16 };
    static int counts[MOST];
    const char *faults = getenv("FAKE_FAULTS");
    size_t length = strlen(call);
    for (int i = 0; faults && *faults && i < MOST; i++) {
        if (!strncmp(faults, call, length) && faults[length] == '@') {
            char *what;
            if (++counts[i] == strtol(faults + length + 1, &what, 10)) return happen(what + 1);
        }
        faults = strchr(faults, ',');
        faults = faults ? faults + 1 : NULL;
    }
    return 0;
}

void fake_submit(void (*work)(void *), void *what) {
    if (work_count == WORKS) abort();
    works[work_count].work = work;
    works[work_count++].what = what;
}

static void catch_up(void) {
    for (int i = 0; i < work_count; i++) works[i].work(works[i].what);
    works_done += (unsigned long)work_count;
    work_count = 0;
}

static int find_piece(const char *address, size_t bytes) {
    for (int i = 0; i < piece_count; i++)
        if (address >= pieces[i].start && address + bytes <= pieces[i].start + pieces[i].size) return i;
    return -1;
}

void *fake_memory(bm_device_mem_t memory, size_t bytes) {
    char *address = (char *)memory.u.device.device_addr;
    return find_piece(address, bytes) < 0 ? NULL : address;
}

#define BEGIN(call)                      \
    do {                                 \
        int fault = fake_fault(#call);   \
        if (fault) return (bm_status_t)fault; \
    } while (0)

bm_status_t bm_dev_getcount(int *count) {
    BEGIN(bm_dev_getcount);
    fake_log("bm_dev_getcount");
    *count = 1;
    return BM_SUCCESS;
}

bm_status_t bm_dev_request(bm_handle_t *handle, int devid) {
    BEGIN(bm_dev_request);
    fake_log("bm_dev_request %d", devid);
    *handle = calloc(1, sizeof **handle);
    return BM_SUCCESS;
}

void bm_dev_free(bm_handle_t handle) {
    fake_fault("bm_dev_free");
    fake_log("bm_dev_free");
    free(handle);
    if (piece_count) {
        printf("ASSERT slot_avail: %d pieces of device memory were not freed\n", piece_count);
        exit(255);
    }
}

bm_status_t bm_malloc_device_byte(bm_handle_t handle, bm_device_mem_t *pmem, unsigned int size) {
    (void)handle;
    BEGIN(bm_malloc_device_byte);
    const char *limit = getenv("FAKE_MEMORY");
    if (piece_count == PIECES || (limit && memory_used + size > strtoul(limit, NULL, 0))) return BM_ERR_NOMEM;
    memset(pmem, 0, sizeof *pmem);
    pieces[piece_count].start = calloc(1, size);
    pieces[piece_count].size = size;
    pmem->u.device.device_addr = (unsigned long)pieces[piece_count++].start;
    pmem->size = size;
    memory_used += size;
    fake_log("bm_malloc_device_byte %lx %u", (unsigned long)pmem->u.device.device_addr, size);
    return BM_SUCCESS;
}

void bm_free_device(bm_handle_t handle, bm_device_mem_t mem) {
    (void)handle;
    fake_fault("bm_free_device");
    fake_log("bm_free_device %lx", (unsigned long)mem.u.device.device_addr);
    int i = find_piece((char *)mem.u.device.device_addr, mem.size);
    if (i < 0) abort();
    free(pieces[i].start);
    memory_used -= pieces[i].size;
    pieces[i] = pieces[--piece_count];
}

bm_status_t bm_memcpy_s2d(bm_handle_t handle, bm_device_mem_t dst, void *src) {
    (void)handle;
    BEGIN(bm_memcpy_s2d);
    fake_log("bm_memcpy_s2d %lx %u", (unsigned long)dst.u.device.device_addr, dst.size);
    void *memory = fake_memory(dst, dst.size);
    if (!memory) return BM_ERR_PARAM;
    memcpy(memory, src, dst.size);
    return BM_SUCCESS;
}

bm_status_t bm_memcpy_d2s(bm_handle_t handle, void *dst, bm_device_mem_t src) {
    (void)handle;
    BEGIN(bm_memcpy_d2s);
    fake_log("bm_memcpy_d2s %lx %u", (unsigned long)src.u.device.device_addr, src.size);
    void *memory = fake_memory(src, src.size);
    if (!memory) return BM_ERR_PARAM;
    memcpy(dst, memory, src.size);
    return BM_SUCCESS;
}

#ifndef WITHOUT_bm_memcpy_d2d_byte
bm_status_t bm_memcpy_d2d_byte(bm_handle_t handle, bm_device_mem_t dst, size_t dst_offset, bm_device_mem_t src,
                               size_t src_offset, size_t size) {
    (void)handle;
    BEGIN(bm_memcpy_d2d_byte);
    fake_log("bm_memcpy_d2d_byte %lx %lx %zu", (unsigned long)dst.u.device.device_addr,
             (unsigned long)src.u.device.device_addr, size);
    char *to = fake_memory(dst, dst_offset + size), *from = fake_memory(src, src_offset + size);
    if (!to || !from) return BM_ERR_PARAM;
    catch_up(); /* libbmlib synchronises here */
    memmove(to + dst_offset, from + src_offset, size);
    return BM_SUCCESS;
}
#endif

bm_status_t bm_thread_sync(bm_handle_t handle) {
    (void)handle;
    BEGIN(bm_thread_sync);
    fake_log("bm_thread_sync");
    catch_up();
    return BM_SUCCESS;
}

bm_status_t bm_get_chipid(bm_handle_t handle, unsigned int *p_chipid) {
    (void)handle;
    BEGIN(bm_get_chipid);
    *p_chipid = 0x1686;
    return BM_SUCCESS;
}

bm_status_t bm_get_driver_version(bm_handle_t handle, int *driver_version) {
    (void)handle;
    BEGIN(bm_get_driver_version);
    *driver_version = 0x501;
    return BM_SUCCESS;
}

#ifndef WITHOUT_bm_get_profile
bm_status_t bm_get_profile(bm_handle_t handle, bm_profile_t *profile) {
    (void)handle;
    BEGIN(bm_get_profile);
    const char *each = getenv("FAKE_TPU_US");
    memset(profile, 0, sizeof *profile);
    profile->tpu_process_time = each ? works_done * strtoul(each, NULL, 0) : 0;
    return BM_SUCCESS;
}
#endif

#ifndef WITHOUT_bm_get_stat
bm_status_t bm_get_stat(bm_handle_t handle, bm_dev_stat_t *stat) {
    (void)handle;
    BEGIN(bm_get_stat);
    const char *limit = getenv("FAKE_MEMORY");
    memset(stat, 0, sizeof *stat);
    stat->mem_total = limit ? (int)(strtoul(limit, NULL, 0) >> 20) : 0;
    stat->mem_used = (int)(memory_used >> 20);
    return BM_SUCCESS;
}
#endif

const char *libbmlib_version(void) {
    return "libbmlib_version:0.0.0, fake";
}
