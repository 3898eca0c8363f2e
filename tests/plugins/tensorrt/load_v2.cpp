// Opens a plugin library in a process that has a real TensorRT 8, as its two ways of finding plugins do:
//   load_v2 libnvinfer.so.8 library      (built with that TensorRT's own headers: the registry differs even in 8.6)
// Prints the version, whether opening the library registered the plugin, and whether loadLibrary did.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>

using namespace nvinfer1;

int main(int count, char** arguments) {
    if (count != 3) return 2;
    void* const runtime = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);  // local: so do Python's imports
    if (runtime == nullptr) return printf("%s\n", dlerror()), 1;
    int32_t const version = reinterpret_cast<int32_t (*)()>(dlsym(runtime, "getInferLibVersion"))();
    auto* const registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(runtime, "getPluginRegistry"))();
    auto registered = [&] { return registry->getPluginCreator("SvdqLinear", "1", "") != nullptr; };
    if (registered() || dlopen(arguments[2], RTLD_NOW | RTLD_LOCAL) == nullptr) return printf("%s\n", dlerror()), 1;
    bool const opened = registered();
    bool loaded = false;
#if NV_TENSORRT_MINOR >= 6
    loaded = registry->loadLibrary(arguments[2]) != nullptr && registered();
#endif
    printf("%d %d %d\n", version, opened, loaded);
    if (!opened && !loaded) return 1;
    int32_t const size = 64, layout = 1;
    PluginField const fields[] = {{"n", &size, PluginFieldType::kINT32, 1},
                                  {"k", &size, PluginFieldType::kINT32, 1},
                                  {"layout_version", &layout, PluginFieldType::kINT32, 1}};
    PluginFieldCollection const good{3, fields}, bad{2, fields};
    IPluginCreator* const creator = registry->getPluginCreator("SvdqLinear", "1", "");
    return creator->createPlugin("node", &good) != nullptr && creator->createPlugin("node", &bad) == nullptr ? 0 : 1;
}
