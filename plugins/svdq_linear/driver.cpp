#include "driver.h"

#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "kernels/tiles.h"

// All architectures' kernels, embedded by the build (fatbin.S).
extern "C" unsigned char const svdq_fatbin[];

namespace svdq {
namespace {

// Of the driver API (CUDA Driver API reference, 12.0): all that is needed here, so that no CUDA header is.
using Result = int;
using Context = void*;
using Module = void*;
using Function = void*;
enum Attribute { kProcessors = 16, kMajor = 75, kMinor = 76 };

struct Driver {
    Result (*ctx_get_current)(Context*) = nullptr;
    Result (*ctx_get_device)(int*) = nullptr;
    Result (*ctx_get_id)(Context, unsigned long long*) = nullptr;  // 12.0
    Result (*device_get_attribute)(int*, int, int) = nullptr;
    Result (*module_load_data)(Module*, void const*) = nullptr;
    Result (*module_get_function)(Function*, Module, char const*) = nullptr;
    Result (*func_load)(Function) = nullptr;  // 12.4; optional
    Result (*launch_kernel)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                            void**) = nullptr;
    bool complete = false;

    Driver() {
        char const* const path = std::getenv("SVDQ_LIBCUDA");  // another libcuda.so.1, for tests
        void* const library = dlopen(path ? path : "libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (!library) return;
        auto const find = [library](auto& function, char const* name) {
            function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
            return function != nullptr;
        };
        find(ctx_get_id, "cuCtxGetId");
        find(func_load, "cuFuncLoad");
        complete = find(ctx_get_current, "cuCtxGetCurrent") && find(ctx_get_device, "cuCtxGetDevice") &&
                   find(device_get_attribute, "cuDeviceGetAttribute") && find(module_load_data, "cuModuleLoadData") &&
                   find(module_get_function, "cuModuleGetFunction") && find(launch_kernel, "cuLaunchKernel");
    }
};

Driver& driver() {
    static Driver d;
    return d;
}

std::vector<std::string> kernel_names(bool wide) {
    std::vector<std::string> names;
#define STAGED(name, ...) names.push_back("svdq_" #name);
#define DIRECT(name, ...) names.push_back("svdq_" #name);
#define GEMV(name, ...) names.push_back("gemv svdq_" #name);
    SVDQ_TILES(STAGED, DIRECT, GEMV)
    std::vector<std::string> all;
    for (std::string const type : {"f16", "bf16"}) {
        for (auto const& name : names) {
            if (name.rfind("gemv ", 0) == 0) {
                all.push_back(name.substr(5) + "_" + type);
                continue;
            }
            for (std::string const codes : {"s4", "u4", "s8", "u8"})
                if (!wide || codes[1] == '8') all.push_back(name + "_" + type + "_" + codes);
        }
        for (std::string const bits : {"a4", "a8", "a16"})
            for (std::string const group : {"g64", "g128"})
                for (std::string const rank : {"r0", "r32", "r128"}) {
                    if ((wide && bits == "a4") || (bits == "a16" && (group == "g128" || rank == "r0"))) continue;
                    all.push_back("svdq_quantize_" + type + "_" + bits + "_" + group + "_" + rank);
                }
    }
    return all;
}

}  // namespace

struct Kernels {
    Device device{};
    Module module = nullptr;
    std::unordered_map<std::string, Function> functions;
};

namespace {

// All kernels at once: none is then loaded in the middle of a capture.
int32_t load(Kernels& kernels) {
    Driver& d = driver();
    int device = 0, major = 0, minor = 0, processors = 0;
    if (d.ctx_get_device(&device) || d.device_get_attribute(&major, kMajor, device) ||
        d.device_get_attribute(&minor, kMinor, device) || d.device_get_attribute(&processors, kProcessors, device))
        return SVDQ_NO_CONTEXT;
    kernels.device = {processors < kLargestDevice.processors ? processors : kLargestDevice.processors, major >= 9};
    if (d.module_load_data(&kernels.module, svdq_fatbin)) return SVDQ_NO_KERNELS;
    for (auto const& name : kernel_names(kernels.device.wide)) {
        Function function = nullptr;
        if (d.module_get_function(&function, kernels.module, name.c_str())) return SVDQ_NO_KERNELS;
        if (d.func_load && d.func_load(function)) return SVDQ_NO_KERNELS;
        kernels.functions[name] = function;
    }
    return SVDQ_OK;
}

}  // namespace

int32_t current_kernels(Kernels** found) {
    Driver& d = driver();
    if (!d.complete) return SVDQ_NO_DRIVER;
    Context context = nullptr;
    if (d.ctx_get_current(&context) || !context) return SVDQ_NO_CONTEXT;
    // A context's address may come again after it was destroyed; its id does not.
    unsigned long long id = 0;
    if (!d.ctx_get_id || d.ctx_get_id(context, &id)) id = reinterpret_cast<uintptr_t>(context);
    static std::mutex mutex;
    static std::map<unsigned long long, std::unique_ptr<Kernels>> contexts;
    std::lock_guard<std::mutex> lock(mutex);
    auto& kernels = contexts[id];
    if (!kernels) {
        auto fresh = std::make_unique<Kernels>();
        if (int32_t const status = load(*fresh)) return status;
        kernels = std::move(fresh);
    }
    *found = kernels.get();
    return SVDQ_OK;
}

Device const& device_of(Kernels const& kernels) { return kernels.device; }

int32_t launch(Kernels& kernels, std::string const& name, Dim grid, int threads, void* params, void* stream) {
    auto const found = kernels.functions.find(name);
    if (found == kernels.functions.end()) return SVDQ_NO_KERNELS;
    void* arguments[] = {params};
    Result const result = driver().launch_kernel(found->second, grid.x, grid.y, grid.z, static_cast<unsigned>(threads), 1, 1, 0,
                                                 stream, arguments, nullptr);
    return result ? SVDQ_LAUNCH_FAILED : SVDQ_OK;
}

}  // namespace svdq
