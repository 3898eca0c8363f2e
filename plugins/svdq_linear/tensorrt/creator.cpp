// The plugin's creator, and the two functions that TensorRT's loadLibrary looks for: trtexec --dynamicPlugins,
// IPluginRegistry::loadLibrary and, in Python, get_plugin_registry().load_library.
//
// Nothing is registered when the library is merely opened (trtexec --staticPlugins): that takes a call to the registry,
// whose vtable differs between TensorRT 10 and 11.
#include <new>

#include "plugin.h"

using namespace nvinfer1;

namespace svdq {
namespace {

class Creator final : public IPluginCreatorV3One {
  public:
    Creator() {
        Values const values;
        for (int32_t i = 0; i < kFieldCount; ++i) {
            Field const field = field_of(values, i);
            // Parsers read the attributes that are listed here and no others. Values are theirs to fill in.
            attributes_[i] = PluginField(field.name, nullptr, PluginFieldType(field.type), 1);
        }
    }

    // What an engine stores is what the node said, so the phase makes no difference.
    IPluginV3* createPlugin(char const* name, PluginFieldCollection const* fields, TensorRTPhase) noexcept override {
        FieldReader reader;
        if (reader.take_all(fields) && reader.finish()) return new (std::nothrow) Plugin(reader.values());
        reader.reason().print(name == nullptr ? "" : name);
        return nullptr;
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    char const* getPluginName() const noexcept override { return kPluginName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  private:
    PluginField attributes_[kFieldCount];
    PluginFieldCollection collection_{kFieldCount, attributes_};
};

}  // namespace
}  // namespace svdq

extern "C" SVDQ_API IPluginCreatorInterface* const* getCreators(int32_t& count) {
    static svdq::Creator creator;
    static IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

// loadLibrary wants it to exist. The logger behind it stays untouched: see reason.h.
extern "C" SVDQ_API void setLoggerFinder(ILoggerFinder*) {}
