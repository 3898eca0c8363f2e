// A libcuda.so.1 for machines without a GPU: memory is the host's, streams run at once, kernels are this library's own,
// executed on the CPU whatever module is loaded. Tests put it in the driver's place with SVDQ_LIBCUDA.
//
// SVDQ_CPU_CAPABILITY (8.7) and SVDQ_CPU_PROCESSORS (4) are what the device says of itself.
#include "../kernels/kernels.cu"

#include <cstdlib>
#include <set>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int kSuccess = 0, kInvalidValue = 1, kNotFound = 500, kNotSupported = 801;

int capability() {  // 87 for 8.7
    char const* text = std::getenv("SVDQ_CPU_CAPABILITY");
    if (!text) return 87;
    int major = 8, minor = 7;
    return std::sscanf(text, "%d.%d", &major, &minor) == 2 ? 10 * major + minor : 87;
}

int processors() {
    char const* text = std::getenv("SVDQ_CPU_PROCESSORS");
    return text ? std::atoi(text) : 4;
}

int the_context = 0;
thread_local void* current = nullptr;

// A captured graph is the list of its launches.
struct Launch {
    on_cpu::Kernel const* kernel;
    dim3 grid, block;
    std::vector<char> params;
};
std::vector<Launch>* capturing = nullptr;

void run(Launch const& l) {
    on_cpu::launch(l.grid, l.block, [&l] { l.kernel->run(l.params.data()); });
}

}  // namespace

EXPORT int cuInit(unsigned) { return kSuccess; }
EXPORT int cuDriverGetVersion(int* version) { return *version = 13000, kSuccess; }
EXPORT int cuDeviceGetCount(int* count) { return *count = 1, kSuccess; }
EXPORT int cuDeviceGet(int* device, int) { return *device = 0, kSuccess; }
EXPORT int cuDeviceGetName(char* name, int length, int) { return std::snprintf(name, length, "CPU stand-in"), kSuccess; }
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = size_t(8) << 30, kSuccess; }
EXPORT int cuMemGetInfo_v2(size_t* free, size_t* total) { return *free = *total = size_t(8) << 30, kSuccess; }
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 16: return *value = processors(), kSuccess;
        case 75: return *value = capability() / 10, kSuccess;
        case 76: return *value = capability() % 10, kSuccess;
        case 38: return *value = 1 << 20, kSuccess;  // bytes of L2
        default: return *value = 0, kSuccess;
    }
}
EXPORT int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &the_context, kSuccess; }
EXPORT int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
EXPORT int cuCtxSetCurrent(void* context) { return current = context, kSuccess; }
EXPORT int cuCtxGetCurrent(void** context) { return *context = current, kSuccess; }
EXPORT int cuCtxGetId(void*, unsigned long long* id) { return *id = 1, kSuccess; }
EXPORT int cuCtxGetDevice(int* device) { return *device = 0, kSuccess; }
EXPORT int cuCtxSynchronize() { return kSuccess; }

EXPORT int cuMemAlloc_v2(void** pointer, size_t bytes) { return posix_memalign(pointer, 256, bytes) ? kInvalidValue : kSuccess; }
EXPORT int cuMemFree_v2(void* pointer) { return std::free(pointer), kSuccess; }
EXPORT int cuMemcpyHtoD_v2(void* to, void const* from, size_t bytes) { return std::memcpy(to, from, bytes), kSuccess; }
EXPORT int cuMemcpyDtoH_v2(void* to, void const* from, size_t bytes) { return std::memcpy(to, from, bytes), kSuccess; }
EXPORT int cuMemcpyDtoD_v2(void* to, void const* from, size_t bytes) { return std::memcpy(to, from, bytes), kSuccess; }
EXPORT int cuMemcpyDtoDAsync_v2(void* to, void const* from, size_t bytes, void*) { return std::memcpy(to, from, bytes), kSuccess; }
EXPORT int cuMemsetD8_v2(void* to, unsigned char value, size_t bytes) { return std::memset(to, value, bytes), kSuccess; }
EXPORT int cuMemsetD8Async(void* to, unsigned char value, size_t bytes, void*) { return std::memset(to, value, bytes), kSuccess; }

EXPORT int cuModuleLoadData(void** module, void const* image) {
    if (!image) return kInvalidValue;
    return *module = const_cast<void*>(image), kSuccess;
}
EXPORT int cuModuleGetFunction(void** function, void*, char const* name) {
    auto const found = on_cpu::kernels().find(name);
    if (found == on_cpu::kernels().end()) return kNotFound;
    return *function = &found->second, kSuccess;
}
EXPORT int cuFuncLoad(void*) { return kSuccess; }
EXPORT int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                          unsigned shared_bytes, void*, void** params, void**) {
    if (gx == 0 || gy == 0 || gz == 0 || gy > 65535 || gz > 65535 || bx * by * bz > 1024 || shared_bytes != 0) return kInvalidValue;
    Launch l{static_cast<on_cpu::Kernel const*>(function), {gx, gy, gz}, {bx, by, bz}, {}};
    auto const* const bytes = static_cast<char const*>(params[0]);
    l.params.assign(bytes, bytes + l.kernel->params_bytes);
    if (capturing) return capturing->push_back(std::move(l)), kSuccess;
    return run(l), kSuccess;
}

EXPORT int cuStreamCreate(void** stream, unsigned) { return *stream = new int(0), kSuccess; }
EXPORT int cuStreamDestroy_v2(void* stream) { return delete static_cast<int*>(stream), kSuccess; }
EXPORT int cuStreamSynchronize(void*) { return kSuccess; }
EXPORT int cuStreamBeginCapture_v2(void*, int) {
    if (capturing) return kInvalidValue;
    return capturing = new std::vector<Launch>, kSuccess;
}
EXPORT int cuStreamEndCapture(void*, void** graph) {
    *graph = capturing;
    return capturing = nullptr, *graph ? kSuccess : kInvalidValue;
}
EXPORT int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    return *executable = new std::vector<Launch>(*static_cast<std::vector<Launch>*>(graph)), kSuccess;
}
EXPORT int cuGraphLaunch(void* executable, void*) {
    for (auto const& l : *static_cast<std::vector<Launch>*>(executable)) run(l);
    return kSuccess;
}
EXPORT int cuGraphExecDestroy(void* executable) { return delete static_cast<std::vector<Launch>*>(executable), kSuccess; }
EXPORT int cuGraphDestroy(void* graph) { return delete static_cast<std::vector<Launch>*>(graph), kSuccess; }

EXPORT int cuEventCreate(void** event, unsigned) { return *event = new int(0), kSuccess; }
EXPORT int cuEventDestroy_v2(void* event) { return delete static_cast<int*>(event), kSuccess; }
EXPORT int cuEventRecord(void*, void*) { return kSuccess; }
EXPORT int cuEventSynchronize(void*) { return kSuccess; }
EXPORT int cuEventElapsedTime(float* milliseconds, void*, void*) { return *milliseconds = 0.0f, kSuccess; }
EXPORT int cuGetErrorString(int error, char const** text) { return *text = error == kNotSupported ? "not supported" : "stand-in error", kSuccess; }
