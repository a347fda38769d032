/* libcuda in software, for cuda-bindings itself: device memory is the host's, and work is done when it is enqueued.
   Calls that need a current context are refused without one. What tests ask for is written to stderr. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *Handle;
typedef unsigned long long Address;
typedef struct {
    size_t src_x, src_y; int src_type; const void *src_host; Address src; void *src_array; size_t src_pitch;
    size_t dst_x, dst_y; int dst_type; void *dst_host; Address dst; void *dst_array; size_t dst_pitch;
    size_t width, height;
} Copy2D;

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_DEVICE = 101, INVALID_CONTEXT = 201 };
static Handle stack[16];
static int depth, held;
static long handles = 0x5000;
static const size_t TOTAL = 1 << 30;

#define CURRENT if (!depth) return INVALID_CONTEXT
#define TOLD(...) fprintf(stderr, __VA_ARGS__)

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13050; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? INVALID_DEVICE : 0; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Software GPU"); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = TOTAL; return 0; }
int cuDevicePrimaryCtxRetain(Handle *context, int device) { *context = (Handle)0x1000; TOLD("retained\n"); return 0; }
int cuCtxPushCurrent_v2(Handle context) { stack[depth++] = context; return 0; }
int cuCtxPopCurrent_v2(Handle *context) { CURRENT; *context = stack[--depth]; return 0; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { CURRENT; *least = 0; *greatest = -5; return 0; }

static int created(Handle *handle) { CURRENT; held++; *handle = (Handle)++handles; return 0; }
static int destroyed(void) { CURRENT; TOLD("held %d\n", --held); return 0; }
int cuStreamCreate(Handle *stream, unsigned flags) { TOLD("stream flags %u\n", flags); return created(stream); }
int cuStreamCreateWithPriority(Handle *stream, unsigned flags, int priority) {
    TOLD("stream flags %u priority %d\n", flags, priority);
    return created(stream);
}
int cuStreamSetAttribute(Handle stream, int attribute, const int *value) {
    TOLD("attribute %d of %p: %d\n", attribute, stream, *value);
    return 0;
}
int cuStreamSynchronize(Handle stream) { CURRENT; return 0; }
int cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) { TOLD("%p waits for %p\n", stream, event); CURRENT; return 0; }
int cuStreamDestroy_v2(Handle stream) { return destroyed(); }
int cuEventCreate(Handle *event, unsigned flags) { return created(event); }
int cuEventRecord(Handle event, Handle stream) { TOLD("%p on %p\n", event, stream); CURRENT; return 0; }
int cuEventSynchronize(Handle event) { CURRENT; return 0; }
int cuEventDestroy_v2(Handle event) { return destroyed(); }

int cuMemAlloc_v2(Address *address, size_t size) {
    CURRENT;
    if (size > TOTAL) return OUT_OF_MEMORY;
    *address = (Address)aligned_alloc(512, (size + 511) / 512 * 512);
    held++;
    return 0;
}
int cuMemFree_v2(Address address) { free((void *)address); return destroyed(); }
int cuMemGetInfo_v2(size_t *left, size_t *total) { CURRENT; *left = TOTAL / 2; *total = TOTAL; return 0; }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) { CURRENT; *memory = malloc(size); held++; return 0; }
int cuMemFreeHost(void *memory) { free(memory); return destroyed(); }
int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, Handle s) { CURRENT; memcpy((void *)to, from, size); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, Handle s) { CURRENT; memcpy(to, (void *)from, size); return 0; }
/* Copies within the device can be recorded; the last recording is the one that is launched. */
static struct { Address to, from; size_t size; } recorded[16];
static int recording, count;
int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t size, Handle s) {
    CURRENT;
    if (recording && count == 16) return INVALID_VALUE;
    if (recording) { recorded[count].to = to; recorded[count].from = from; recorded[count++].size = size; }
    else memcpy((void *)to, (void *)from, size);
    return 0;
}
int cuMemsetD8Async(Address to, unsigned char value, size_t size, Handle s) { CURRENT; memset((void *)to, value, size); return 0; }
int cuMemcpy2DAsync_v2(const Copy2D *copy, Handle s) {
    CURRENT;
    if (copy->src_type != 2 || copy->dst_type != 2) return INVALID_VALUE;
    for (size_t row = 0; row < copy->height; row++)
        memcpy((char *)copy->dst + row * copy->dst_pitch, (char *)copy->src + row * copy->src_pitch, copy->width);
    return 0;
}

int cuStreamBeginCapture_v2(Handle stream, int mode) {
    TOLD("capture mode %d on %p\n", mode, stream);
    CURRENT;
    recording = 1, count = 0;
    return 0;
}
int cuStreamEndCapture(Handle stream, Handle *graph) { recording = 0; return created(graph); }
int cuGraphInstantiateWithFlags(Handle *executable, Handle graph, unsigned long long flags) { return created(executable); }
int cuGraphLaunch(Handle executable, Handle stream) {
    TOLD("launch on %p\n", stream);
    CURRENT;
    for (int i = 0; i < count; i++) memcpy((void *)recorded[i].to, (void *)recorded[i].from, recorded[i].size);
    return 0;
}
int cuGraphExecDestroy(Handle executable) { return destroyed(); }
int cuGraphDestroy(Handle graph) { return destroyed(); }

/* cuda-bindings asks for functions by their names in the documents. */
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, int *status) {
    static const char *suffixes[] = {"_v2", "WithFlags", ""};
    void *self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    char full[128];
    *function = NULL;
    for (int i = 0; self && !*function && i < 3; i++) {
        snprintf(full, sizeof full, "%s%s", name, suffixes[i]);
        *function = dlsym(self, full);
    }
    if (status) *status = *function ? 0 : 1;
    return 0;
}
