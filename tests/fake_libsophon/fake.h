/* Types of the vendor's interface, and what the two fake libraries share. */
#ifndef FAKE_H
#define FAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef VENDOR_HEADER /* proves, at compile time, that our signatures are the vendor's */
#include "bmlib_runtime.h"
#else
typedef enum { BM_SUCCESS = 0, BM_ERR_FAILURE = 2, BM_ERR_PARAM = 4, BM_ERR_NOMEM = 5, BM_NOT_SUPPORTED = 9 } bm_status_t;
typedef struct bm_context *bm_handle_t;
typedef struct {
    union {
        struct {
            unsigned long device_addr;
            unsigned int reserved;
            int dmabuf_fd;
        } device;
    } u;
    unsigned int flags;
    unsigned int size;
} bm_device_mem_t;
typedef struct bm_profile {
    unsigned long cdma_in_time, cdma_in_counter, cdma_out_time, cdma_out_counter;
    unsigned long tpu_process_time, tpu1_process_time;
    unsigned long sent_api_counter, completed_api_counter;
} bm_profile_t;
struct bm_heap_stat {
    unsigned int mem_total, mem_avail, mem_used;
};
typedef struct bm_dev_stat {
    int mem_total, mem_used, tpu_util, heap_num;
    struct bm_heap_stat heap_stat[4];
} bm_dev_stat_t;
#endif

enum { F32 = 0, F16 = 1, I8 = 2, I32 = 6, BF16 = 8 }; /* of bm_data_type_t */

typedef struct {
    int num_dims;
    int dims[8];
} bm_shape_t;

typedef struct {
    int dtype;
    bm_shape_t shape;
    bm_device_mem_t device_mem;
    int st_mode;
} bm_tensor_t;

typedef struct {
    bm_shape_t *input_shapes;
    bm_shape_t *output_shapes;
    bm_device_mem_t *input_mems;
    bm_device_mem_t *output_mems;
} bm_stage_info_t;

typedef struct {
    const char *name;
    bool is_dynamic;
    int input_num;
    const char **input_names;
    int *input_dtypes;
    float *input_scales;
    int output_num;
    const char **output_names;
    int *output_dtypes;
    float *output_scales;
    int stage_num;
    bm_stage_info_t *stages;
    size_t *max_input_bytes;
    size_t *max_output_bytes;
    int *input_zero_point;
    int *output_zero_point;
    int *input_loc_devices;
    int *output_loc_devices;
    int core_num;
    int32_t addr_mode;
} bm_net_info_t;

/* Write a line to the file named by FAKE_LOG, with the number of the calling thread before it. */
void fake_log(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool fake_logging(void);

/* Count a call; carry out the fault that FAKE_FAULTS holds for it. Non-zero: the call is to return this status. */
int fake_fault(const char *call);

/* Let `work(what)` happen at the calling thread's next synchronisation. */
void fake_submit(void (*work)(void *), void *what);

/* The host memory behind device memory; NULL where nothing of that size was allocated. */
void *fake_memory(bm_device_mem_t memory, size_t bytes);

#endif
