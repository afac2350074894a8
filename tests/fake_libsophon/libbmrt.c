/* libbmrt for files as build.py writes them: behind the header and the description of a bmodel come lines of text
 *   net NAME ADDR_MODE STAGES DYNAMIC INSTANT
 *   in NAME DTYPE DIM...     inputs and outputs of the net above
 *   out NAME DTYPE DIM...
 *   refuse WORDS             print the words and load nothing
 *
 * What a net computes is small and exact in every float type: numbers modulo 251, in the first and the last four
 * elements of each array. All else of a state is copied. With t a token, i the number of a state in its layer, e the
 * number of an element:  s[e] = 3 s[e] + t + i + e + 1;  then sum = 7 sum + s[first] + s[last]. From the second layer
 * on the sum of the first is added before. Logits are sum + 5 e. Hidden values are (t, sum, 0, ...) of each token.
 * A net whose name begins with embed_, block_ or head_ does its part of that. Where the first input has rows of floats,
 * a token is the sum of the first and the last number of its row.
 */
#define _GNU_SOURCE
#include "fake.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 256, PRIME = 251, ENDS = 4, STATES_OF_A_LAYER = 3 };

typedef struct {
    bm_net_info_t info;
    bool instant;
} net_t;

typedef struct {
    net_t nets[MOST];
    int count;
} runtime_t;

typedef struct {
    const net_t *net;
    bm_tensor_t in[MOST], out[MOST];
} launch_t;

static size_t elements(const bm_shape_t *shape) {
    size_t count = 1;
    for (int i = 0; i < shape->num_dims; i++) count *= shape->dims[i];
    return count;
}

static size_t width(int dtype) {
    return dtype == F32 || dtype == I32 ? 4 : dtype == I8 ? 1 : 2;
}

static size_t tensor_bytes(const bm_tensor_t *tensor) {
    return elements(&tensor->shape) * width(tensor->dtype);
}

/* Whole numbers below 256 in each type. */
static int load(const char *data, int dtype, size_t i) {
    union {
        uint32_t bits;
        float value;
    } f = {0};
    uint16_t half;
    if (dtype == I32) return ((const int32_t *)data)[i];
    if (dtype == F32) return (int)((const float *)data)[i];
    memcpy(&half, data + 2 * i, 2);
    if (dtype == BF16) {
        f.bits = (uint32_t)half << 16;
        return (int)f.value;
    }
    if (half == 0) return 0;
    f.bits = ((uint32_t)((half >> 10) - 15 + 127) << 23) | (uint32_t)(half & 1023) << 13;
    return (int)f.value;
}

static void store(char *data, int dtype, size_t i, int number) {
    union {
        uint32_t bits;
        float value;
    } f;
    f.value = (float)number;
    if (dtype == F32) {
        ((float *)data)[i] = f.value;
        return;
    }
    uint16_t half = (uint16_t)(f.bits >> 16);
    if (dtype == F16) half = number ? (uint16_t)((((f.bits >> 23) - 127 + 15) << 10) | ((f.bits >> 13) & 1023)) : 0;
    memcpy(data + 2 * i, &half, 2);
}

static char *data_of(const bm_tensor_t *tensor) {
    return (char *)tensor->device_mem.u.device.device_addr;
}

/* Memory that was given back, or is too small, ends the process. */
static void check_memory(const bm_tensor_t *tensors, int count) {
    for (int i = 0; i < count; i++)
        if (!fake_memory(tensors[i].device_mem, tensor_bytes(&tensors[i]))) abort();
}

/* The element after e that is one of the first or the last four. */
static size_t next_end(size_t e, size_t count) {
    return e + 1 < ENDS || e + 1 + ENDS >= count ? e + 1 : count - ENDS;
}

static void write_ends(char *data, int dtype, size_t start, size_t count, int sum) {
    for (size_t e = 0; e < count; e = next_end(e, count))
        store(data, dtype, start + e, (int)((sum + 5 * e) % PRIME));
}

/* One token through the states first, first + 1, ... of a layer. */
static int layer(launch_t *launch, int first, int token, int sum) {
    for (int i = 0; i < STATES_OF_A_LAYER; i++) {
        bm_tensor_t *tensor = &launch->out[first + i];
        char *state = data_of(tensor);
        size_t count = elements(&tensor->shape);
        for (size_t e = 0; e < count; e = next_end(e, count))
            store(state, tensor->dtype, e, (int)((3 * load(state, tensor->dtype, e) + token + i + e + 1) % PRIME));
        sum = (7 * sum + load(state, tensor->dtype, 0) + load(state, tensor->dtype, count - 1)) % PRIME;
    }
    return sum;
}

static void carry_states(launch_t *launch, int count) {
    for (int i = 1; i <= count; i++) {
        bm_tensor_t *in = &launch->in[i], *out = &launch->out[i];
        char *from = data_of(in), *to = data_of(out);
        if (from == to) continue;
        size_t bytes = tensor_bytes(in), ends = ENDS * width(in->dtype);
        if (!launch->net->instant || bytes < 2 * ends) {
            memcpy(to, from, bytes);
        } else {
            memcpy(to, from, ends);
            memcpy(to + bytes - ends, from + bytes - ends, ends);
        }
    }
}

static size_t row_length(const bm_tensor_t *first) {
    return first->dtype == I32 ? 1 : (size_t)first->shape.dims[first->shape.num_dims - 1];
}

static int of_token(launch_t *launch, size_t t) {
    const bm_tensor_t *in = &launch->in[0];
    size_t C = row_length(in);
    int first = load(data_of(in), in->dtype, t * C), last = load(data_of(in), in->dtype, t * C + C - 1);
    return (C > 1 ? first + last : first) % PRIME;
}

static void whole(launch_t *launch) {
    const bm_net_info_t *info = &launch->net->info;
    int states = info->input_num - 1;
    carry_states(launch, states);
    char *logits = data_of(&launch->out[0]);
    const bm_shape_t *shape = &launch->out[0].shape;
    size_t V = shape->dims[shape->num_dims - 1], rows = elements(shape) / V;
    size_t T = elements(&launch->in[0].shape) / row_length(&launch->in[0]);
    for (size_t t = 0; t < T; t++) {
        int token = of_token(launch, t), sum = 0, sum_of_first = 0;
        for (int first = 1; first <= states; first += STATES_OF_A_LAYER) {
            if (first > 1) sum = (sum + sum_of_first) % PRIME;
            sum = layer(launch, first, token, sum);
            if (first == 1) sum_of_first = sum;
        }
        if (rows == T || t + 1 == T) write_ends(logits, launch->out[0].dtype, rows == T ? t * V : 0, V, sum);
    }
}

static void hidden(const bm_tensor_t *tensor, size_t t, int token, int sum) {
    const bm_shape_t *shape = &tensor->shape;
    size_t C = shape->dims[shape->num_dims - 1];
    store(data_of(tensor), tensor->dtype, t * C, token);
    store(data_of(tensor), tensor->dtype, t * C + 1, sum);
}

static int hidden_part(const bm_tensor_t *tensor, size_t t, size_t part) {
    const bm_shape_t *shape = &tensor->shape;
    return load(data_of(tensor), tensor->dtype, t * shape->dims[shape->num_dims - 1] + part);
}

static void embed(launch_t *launch) {
    size_t T = elements(&launch->in[0].shape);
    for (size_t t = 0; t < T; t++) hidden(&launch->out[0], t, of_token(launch, t), 0);
}

static void block(launch_t *launch, size_t T, bool first) {
    carry_states(launch, STATES_OF_A_LAYER);
    for (size_t t = 0; t < T; t++) {
        int token = hidden_part(&launch->in[0], t, 0), sum = hidden_part(&launch->in[0], t, 1);
        if (!first) sum = (sum + hidden_part(&launch->in[1 + STATES_OF_A_LAYER], t, 1)) % PRIME;
        sum = layer(launch, 1, token, sum);
        hidden(&launch->out[0], t, token, sum);
        if (first) hidden(&launch->out[1 + STATES_OF_A_LAYER], t, token, sum);
    }
}

static void head(launch_t *launch, size_t T) {
    bm_tensor_t *logits = &launch->out[0];
    size_t V = logits->shape.dims[logits->shape.num_dims - 1], rows = elements(&logits->shape) / V;
    for (size_t r = 0; r < rows; r++)
        write_ends(data_of(logits), logits->dtype, r * V, V,
                   hidden_part(&launch->in[0], rows == T ? r : T - 1, 1));
}

static void compute(void *what) {
    launch_t *launch = what;
    const bm_net_info_t *info = &launch->net->info;
    int i, T;
    if (!launch->net->instant) {
        check_memory(launch->in, info->input_num);
        check_memory(launch->out, info->output_num);
    }
    if (info->addr_mode != 0) /* outputs are written while inputs are read: where they are one, the input is gone */
        for (i = 0; i < info->output_num; i++)
            if (!launch->net->instant) memset(data_of(&launch->out[i]), 0, tensor_bytes(&launch->out[i]));
    if (sscanf(info->name, "embed_%d", &T) == 1)
        embed(launch);
    else if (sscanf(info->name, "block_%d_%d", &i, &T) == 2)
        block(launch, T, i == 0);
    else if (sscanf(info->name, "head_%d", &T) == 1)
        head(launch, T);
    else
        whole(launch);
    free(launch);
}

void *bmrt_create(bm_handle_t handle) {
    (void)handle;
    if (fake_fault("bmrt_create")) return NULL;
    fake_log("bmrt_create");
    return calloc(1, sizeof(runtime_t));
}

void bmrt_destroy(void *p_bmrt) {
    fake_fault("bmrt_destroy");
    fake_log("bmrt_destroy");
    free(p_bmrt);
}

#ifndef WITHOUT_bmrt_get_flags
uint32_t bmrt_get_flags(void *p_bmrt) {
    (void)p_bmrt;
    return 1;
}
#endif

static void new_net(net_t *net, char *line) {
    char name[MOST];
    int dynamic, instant;
    bm_net_info_t *info = &net->info;
    if (sscanf(line, "%255s %d %d %d %d", name, &info->addr_mode, &info->stage_num, &dynamic, &instant) != 5) abort();
    info->name = strdup(name);
    info->is_dynamic = dynamic;
    net->instant = instant;
    info->core_num = 1;
    info->input_names = calloc(MOST, sizeof(char *));
    info->output_names = calloc(MOST, sizeof(char *));
    info->input_dtypes = calloc(MOST, sizeof(int));
    info->output_dtypes = calloc(MOST, sizeof(int));
    info->max_input_bytes = calloc(MOST, sizeof(size_t));
    info->max_output_bytes = calloc(MOST, sizeof(size_t));
    info->stages = calloc(1, sizeof(bm_stage_info_t));
    info->stages->input_shapes = calloc(MOST, sizeof(bm_shape_t));
    info->stages->output_shapes = calloc(MOST, sizeof(bm_shape_t));
}

static void new_port(char *line, const char **name, int *dtype, bm_shape_t *shape, size_t *bytes) {
    *name = strdup(strtok(line, " "));
    *dtype = atoi(strtok(NULL, " "));
    for (char *dim; (dim = strtok(NULL, " "));) shape->dims[shape->num_dims++] = atoi(dim);
    *bytes = elements(shape) * width(*dtype);
}

bool bmrt_load_bmodel(void *p_bmrt, const char *path) {
    if (fake_fault("bmrt_load_bmodel")) return false;
    fake_log("bmrt_load_bmodel %s", path);
    runtime_t *runtime = p_bmrt;
    FILE *file = fopen(path, "rb");
    uint32_t lengths[3] = {0};
    if (!file || fread(lengths, 4, 3, file) != 3) return false;
    fseek(file, (long)lengths[1] + lengths[2], SEEK_SET);
    char line[4096];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        bm_net_info_t *info = &runtime->nets[runtime->count - 1].info;
        int i;
        if (!strncmp(line, "refuse ", 7)) {
            puts(line + 7);
            fclose(file);
            return false;
        }
        if (!strncmp(line, "net ", 4)) new_net(&runtime->nets[runtime->count++], line + 4);
        if (!strncmp(line, "in ", 3)) {
            i = info->input_num++;
            new_port(line + 3, &info->input_names[i], &info->input_dtypes[i], &info->stages->input_shapes[i],
                     &info->max_input_bytes[i]);
        }
        if (!strncmp(line, "out ", 4)) {
            i = info->output_num++;
            new_port(line + 4, &info->output_names[i], &info->output_dtypes[i], &info->stages->output_shapes[i],
                     &info->max_output_bytes[i]);
        }
    }
    fclose(file);
    return true;
}

int bmrt_get_network_number(void *p_bmrt) {
    return ((runtime_t *)p_bmrt)->count;
}

void bmrt_get_network_names(void *p_bmrt, const char ***network_names) {
    runtime_t *runtime = p_bmrt;
    *network_names = calloc(MOST, sizeof(char *));
    for (int i = 0; i < runtime->count; i++) (*network_names)[i] = runtime->nets[i].info.name;
}

static net_t *find(runtime_t *runtime, const char *name) {
    for (int i = 0; i < runtime->count; i++)
        if (!strcmp(runtime->nets[i].info.name, name)) return &runtime->nets[i];
    return NULL;
}

const bm_net_info_t *bmrt_get_network_info(void *p_bmrt, const char *net_name) {
    net_t *net = find(p_bmrt, net_name);
    return net ? &net->info : NULL;
}

static void log_launch(const launch_t *launch) {
    char words[1 << 14];
    size_t n = 0;
    const bm_net_info_t *info = &launch->net->info;
    for (int i = 0; i < info->input_num; i++)
        n += (size_t)snprintf(words + n, sizeof words - n, " %lx", (unsigned long)launch->in[i].device_mem.u.device.device_addr);
    n += (size_t)snprintf(words + n, sizeof words - n, " ->");
    for (int i = 0; i < info->output_num; i++)
        n += (size_t)snprintf(words + n, sizeof words - n, " %lx", (unsigned long)launch->out[i].device_mem.u.device.device_addr);
    fake_log("bmrt_launch_tensor_ex %s%s", info->name, words);
}

bool bmrt_launch_tensor_ex(void *p_bmrt, const char *net_name, const bm_tensor_t input_tensors[], int input_num,
                           bm_tensor_t output_tensors[], int output_num, bool user_mem, bool user_stmode) {
    if (fake_fault("bmrt_launch_tensor_ex")) return false;
    const net_t *net = find(p_bmrt, net_name);
    if (!net || !user_mem || user_stmode || input_num != net->info.input_num || output_num != net->info.output_num)
        return false;
    launch_t *launch = malloc(sizeof *launch);
    launch->net = net;
    memcpy(launch->in, input_tensors, (size_t)input_num * sizeof *input_tensors);
    memcpy(launch->out, output_tensors, (size_t)output_num * sizeof *output_tensors);
    if (fake_logging()) log_launch(launch);
    fake_submit(compute, launch);
    return true;
}

const char *libbmrt_version(void) {
    return "libbmrt_version:0.0.0, fake, compiled on 20260101-00:00:00.";
}
