/* A driver for tests of plugins/device.py: device memory is the host's behind a shifted address, so that a host pointer
 * passed for a device pointer is caught; 1 MiB of it. Streams and graphs only count what they are asked for. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHIFT 0x100000000000ull
#define TOTAL (1u << 20)

static size_t used;
static int current, recording, replayed, stray;
static int stream_object, graph_object, stream_open, graph_open, event_open;

static char* host(unsigned long long address) { return (char*)(address - SHIFT); }

int cuInit(unsigned flags) { return flags; }
int cuDriverGetVersion(int* version) { return *version = 12060, 0; }
int cuDeviceGet(int* device, int ordinal) { return *device = 7, ordinal == 0 ? 0 : 101; }
int cuDeviceGetName(char* name, int length, int device) { return snprintf(name, length, "Stand-in %d", device), 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    return *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 16 ? 16 : -device, 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &current, device == 7 ? 0 : 1; }
int cuDevicePrimaryCtxRelease_v2(int device) { return current = 0, used = 0, device == 7 ? 0 : 1; }
int cuCtxSetCurrent(void* context) { return current = context == &current, 0; }
int cuCtxSynchronize(void) { return current ? 0 : 201; }
int cuMemGetInfo_v2(size_t* free, size_t* total) { return *total = TOTAL, *free = TOTAL - used, 0; }
int cuMemAlloc_v2(unsigned long long* address, size_t size) {
    if (!current) return 201;
    if (size > TOTAL - used) return 2;
    size_t* block = aligned_alloc(256, (size + 511) / 256 * 256);
    *block = size;
    used += size;
    *address = (unsigned long long)(block + 32) + SHIFT;
    return 0;
}
int cuMemFree_v2(unsigned long long address) {
    if (!current) return stray++, 201;
    size_t* block = (size_t*)host(address) - 32;
    used -= *block;
    free(block);
    return 0;
}
int cuMemcpyHtoD_v2(unsigned long long to, void const* from, size_t size) { return memcpy(host(to), from, size), 0; }
int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t size) { return memcpy(to, host(from), size), 0; }
int cuMemsetD8_v2(unsigned long long to, unsigned char byte, size_t size) { return memset(host(to), byte, size), 0; }
int cuStreamCreate(void** stream, unsigned flags) { return *stream = &stream_object, stream_open = 1, flags == 1 ? 0 : 1; }
int cuStreamSynchronize(void* stream) { return stream == &stream_object && !recording ? 0 : 900; }
int cuStreamDestroy_v2(void* stream) { return stream_open = 0, stream == &stream_object ? 0 : 400; }
int cuStreamBeginCapture_v2(void* stream, int mode) { return recording = 1, stream == &stream_object && mode == 1 ? 0 : 1; }
int cuStreamEndCapture(void* stream, void** graph) {
    if (!recording) return 901;
    return recording = 0, *graph = &graph_object, graph_open = 1, stream == &stream_object ? 0 : 1;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
    return *executable = &replayed, graph == &graph_object && flags == 0 ? 0 : 1;
}
int cuGraphDestroy(void* graph) { return graph_open = 0, graph == &graph_object ? 0 : 400; }
int cuGraphLaunch(void* executable, void* stream) { return ++replayed, executable == &replayed && stream == &stream_object ? 0 : 400; }
int cuGraphExecDestroy(void* executable) { return executable == &replayed ? 0 : 400; }
int cuEventCreate(void** event, unsigned flags) { return *event = malloc(1), event_open++, flags; }
int cuEventRecord(void* event, void* stream) { return event && stream == &stream_object ? 0 : 400; }
int cuEventSynchronize(void* event) { return event ? 0 : 400; }
int cuEventElapsedTime(float* ms, void* from, void* to) { return *ms = from == to ? 0 : 1.5f, 0; }
int cuEventDestroy_v2(void* event) { return free(event), event_open--, 0; }
int cuGetErrorString(int status, char const** text) {
    *text = status == 2 ? "out of memory" : status == 201 ? "invalid device context" : "something else";
    return 0;
}

/* What tests ask about. */
int stand_in_used(void) { return (int)used; }
int stand_in_stray(void) { return stray; }
int stand_in_replayed(void) { return replayed; }
int stand_in_recording(void) { return recording; }
int stand_in_open(void) { return stream_open + graph_open + event_open; }
