// Loads a plugin library into the registry of a real TensorRT runtime:   load libnvinfer_lean.so.N library
// Serves where Python's bindings cannot run, as for another architecture.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

using namespace nvinfer1;

namespace {

// IPluginRegistry as far as it is called, as TensorRT 11 has it and as 10 has it: it is no interface that stays.
struct Registry11 {
    virtual ~Registry11() = default;
    virtual void setErrorRecorder(IErrorRecorder*) = 0;
    virtual IErrorRecorder* getErrorRecorder() const = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool) = 0;
    virtual void* loadLibrary(char const*) = 0;
    virtual void deregisterLibrary(void*) = 0;
    virtual bool registerCreator(IPluginCreatorInterface&, char const*) = 0;
    virtual IPluginCreatorInterface* const* getAllCreators(int32_t*) const = 0;
    virtual IPluginCreatorInterface* getCreator(char const*, char const*, char const*) = 0;
};

struct Registry10 {
    virtual bool registerOldCreator(void*, char const*) = 0;
    virtual void* getPluginCreatorList(int32_t*) const = 0;
    virtual void* getPluginCreator(char const*, char const*, char const*) = 0;
    virtual ~Registry10() = default;
    virtual void setErrorRecorder(IErrorRecorder*) = 0;
    virtual IErrorRecorder* getErrorRecorder() const = 0;
    virtual bool deregisterOldCreator(void*) = 0;
    virtual bool isParentSearchEnabled() const = 0;
    virtual void setParentSearchEnabled(bool) = 0;
    virtual void* loadLibrary(char const*) = 0;
    virtual void deregisterLibrary(void*) = 0;
    virtual bool registerCreator(IPluginCreatorInterface&, char const*) = 0;
    virtual IPluginCreatorInterface* const* getAllCreators(int32_t*) const = 0;
    virtual IPluginCreatorInterface* getCreator(char const*, char const*, char const*) = 0;
};

template <typename Registry>
int load(Registry* registry, char const* path) {
    void* const handle = registry->loadLibrary(path);
    IPluginCreatorInterface* const found = registry->getCreator("SvdqLinear", "1", "");
    if (handle == nullptr || found == nullptr) return printf("not loaded\n"), 1;
    auto* const creator = static_cast<IPluginCreatorV3One*>(found);
    PluginFieldCollection const* names = creator->getFieldNames();
    for (int32_t i = 0; i < names->nbFields; ++i) printf("%s ", names->fields[i].name);
    int32_t const size = 64, layout = 1;
    PluginField const fields[] = {{"n", &size, PluginFieldType::kINT32, 1},
                                  {"k", &size, PluginFieldType::kINT32, 1},
                                  {"layout_version", &layout, PluginFieldType::kINT32, 1}};
    PluginFieldCollection const good{3, fields}, bad{2, fields};
    IPluginV3* const plugin = creator->createPlugin("node", &good, TensorRTPhase::kBUILD);
    if (plugin == nullptr || creator->createPlugin("node", &bad, TensorRTPhase::kBUILD) != nullptr)
        return printf("made\n"), 1;
    auto* const build = static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
    printf("%s\n", build->getMetadataString());
    delete plugin;
    registry->deregisterLibrary(handle);
    return registry->getCreator("SvdqLinear", "1", "") == nullptr ? 0 : 1;
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) return 2;
    void* const runtime = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
    if (runtime == nullptr) return printf("%s\n", dlerror()), 1;
    int32_t const version = reinterpret_cast<int32_t (*)()>(dlsym(runtime, "getInferLibVersion"))();
    void* const registry = reinterpret_cast<void* (*)()>(dlsym(runtime, "getPluginRegistry"))();
    printf("%d ", version);
    return version >= 110000 ? load(static_cast<Registry11*>(registry), arguments[2])
                             : load(static_cast<Registry10*>(registry), arguments[2]);
}
