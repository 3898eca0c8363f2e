/* A driver for tests of engines/trt/session.py: device memory is the host's behind a shifted address, so that a host
 * pointer passed for a device pointer is caught; a recorded graph holds what was enqueued and does it when launched. */
#include <stdlib.h>
#include <string.h>

#define SHIFT 0x100000000000ull
#define MOST 64

typedef struct {
    int count, work[MOST];
} Graph;

static size_t used, total = 64u << 20;
static int contexts, streams, graphs, launches, busy;
static __thread int current;
static int context_object, stream_object;
static Graph* recording;
static void (*perform)(int);

static char* host(unsigned long long address) { return (char*)(address - SHIFT); }

int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int* device, int ordinal) { return *device = 0, ordinal ? 101 : 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { return *value = attribute == 75 ? 8 : attribute == 76 ? 7 : 1, device; }
int cuDevicePrimaryCtxRetain(void** context, int device) { return *context = &context_object, contexts++, device; }
int cuDevicePrimaryCtxRelease_v2(int device) { return contexts--, device; }
int cuCtxSetCurrent(void* context) { return current = context == &context_object, 0; }
int cuCtxSynchronize(void) { return busy = 0, current ? 0 : 201; }
int cuMemGetInfo_v2(size_t* free, size_t* all) { return *all = total, *free = total - used, current ? 0 : 201; }
int cuMemAlloc_v2(unsigned long long* address, size_t size) {
    if (!current) return 201;
    if (size > total - used) return 2;
    size_t* block = aligned_alloc(256, (size + 511) / 256 * 256);
    *block = size;
    used += size;
    return *address = (unsigned long long)(block + 32) + SHIFT, 0;
}
int cuMemFree_v2(unsigned long long address) {
    if (!current) return 201;
    size_t* block = (size_t*)host(address) - 32;
    return used -= *block, free(block), 0;
}
/* Copies from pageable memory may still be under way when the call returns: `busy` until somebody waits. */
int cuMemcpyHtoD_v2(unsigned long long to, void const* from, size_t size) { return busy = 1, memcpy(host(to), from, size), current ? 0 : 201; }
int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t size) { return memcpy(to, host(from), size), current ? 0 : 201; }
int cuStreamCreate(void** stream, unsigned flags) { return *stream = &stream_object, streams++, flags == 1 && current ? 0 : 1; }
int cuStreamSynchronize(void* stream) { return stream == &stream_object && !recording ? 0 : 900; }
int cuStreamDestroy_v2(void* stream) { return streams--, stream == &stream_object ? 0 : 400; }
int cuStreamBeginCapture_v2(void* stream, int mode) {
    if (recording || stream != &stream_object) return 900;
    return recording = calloc(1, sizeof(Graph)), mode == 1 ? 0 : 1;
}
int cuStreamEndCapture(void* stream, void** graph) { return *graph = recording, recording = 0, *graph && stream == &stream_object ? 0 : 901; }
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
    *executable = memcpy(malloc(sizeof(Graph)), graph, sizeof(Graph));
    return graphs++, flags ? 1 : 0;
}
int cuGraphDestroy(void* graph) { return free(graph), 0; }
int cuGraphExecDestroy(void* executable) { return free(executable), graphs--, 0; }
int cuGraphLaunch(void* executable, void* stream) {
    if (busy) return 719; /* it would compute with inputs that have not arrived */
    Graph const* graph = executable;
    for (int i = 0; i < graph->count; i++) perform(graph->work[i]);
    return launches++, stream == &stream_object ? 0 : 400;
}
int cuGetErrorString(int status, char const** text) { return *text = status == 2 ? "out of memory" : "something else", 0; }

/* For the stand-in of TensorRT: piece of work number `id` is enqueued, to be performed now or whenever a graph is launched. */
int stand_in_enqueue(void* stream, int id) {
    if (stream != &stream_object) return 400;
    if (recording) return recording->count < MOST ? recording->work[recording->count++] = id, 0 : 1;
    if (busy) return 719;
    return perform(id), 0;
}
void stand_in_performs(void (*function)(int)) { perform = function; }
/* Contexts that a test let go of without closing them, as a probe does for the whole process. */
void stand_in_forget(void) { contexts = 0; }
void stand_in_total(size_t bytes) { total = bytes; }
size_t stand_in_used(void) { return used; }
int stand_in_launches(void) { return launches; }
int stand_in_held(void) { return contexts + streams + graphs; }
