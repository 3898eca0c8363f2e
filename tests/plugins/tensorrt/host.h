// What a TensorRT 10 process does with a plugin library, without TensorRT.
#pragma once

#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "fake_launch.h"

namespace host {

using namespace nvinfer1;

struct Library {
    IPluginCreatorV3One* creator = nullptr;
    FakeLaunch* fake = nullptr;  // null in the real library
};

inline Library open_library(char const* path) {
    void* const handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        printf("%s\n", dlerror());
        exit(3);
    }
    auto const get_creators =
        reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(handle, "getCreators"));
    auto const set_logger = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(handle, "setLoggerFinder"));
    auto const fake = reinterpret_cast<FakeLaunch* (*)()>(dlsym(handle, "fake_launch"));
    if (get_creators == nullptr || set_logger == nullptr) {
        printf("getCreators or setLoggerFinder is not exported\n");
        exit(3);
    }
    set_logger(nullptr);
    int32_t count = 0;
    IPluginCreatorInterface* const* creators = get_creators(count);
    if (count != 1) exit(3);
    return {static_cast<IPluginCreatorV3One*>(creators[0]), fake == nullptr ? nullptr : fake()};
}

// A collection that owns its fields' data.
class Fields {
  public:
    Fields& integer(char const* name, int32_t value) {
        return add(name, &value, sizeof value, PluginFieldType::kINT32, 1);
    }
    Fields& wide(char const* name, int64_t value) {
        return add(name, &value, sizeof value, PluginFieldType::kINT64, 1);
    }
    Fields& real(char const* name, float value) {
        return add(name, &value, sizeof value, PluginFieldType::kFLOAT32, 1);
    }
    Fields& text(char const* name, std::string const& value) {
        return add(name, value.data(), value.size(), PluginFieldType::kCHAR, int32_t(value.size()));
    }
    Fields& add(std::string const& name, void const* data, size_t bytes, PluginFieldType type, int32_t length) {
        names_.push_back(name);
        // Of exactly its size and on the heap, so that the sanitiser sees a byte read too many.
        data_.emplace_back(bytes ? std::make_unique<char[]>(bytes) : nullptr);
        if (bytes) memcpy(data_.back().get(), data, bytes);
        fields_.emplace_back(names_.back().c_str(), data_.back().get(), type, length);
        return *this;
    }

    std::vector<PluginField>& raw() { return fields_; }
    PluginFieldCollection const* collection() {
        collection_ = {int32_t(fields_.size()), fields_.data()};
        return &collection_;
    }

  private:
    std::deque<std::string> names_;
    std::deque<std::unique_ptr<char[]>> data_;
    std::vector<PluginField> fields_;
    PluginFieldCollection collection_{};
};

// A plugin with its interfaces.
struct Made {
    std::unique_ptr<IPluginV3> plugin;
    IPluginV3OneCore* core = nullptr;
    IPluginV3OneBuild* build = nullptr;
    IPluginV3OneRuntime* runtime = nullptr;

    explicit Made(IPluginV3* made) : plugin(made) {
        if (made == nullptr) return;
        core = static_cast<IPluginV3OneCore*>(made->getCapabilityInterface(PluginCapabilityType::kCORE));
        build = static_cast<IPluginV3OneBuild*>(made->getCapabilityInterface(PluginCapabilityType::kBUILD));
        runtime = static_cast<IPluginV3OneRuntime*>(made->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    }
    explicit operator bool() const { return plugin != nullptr; }
};

inline Made make(Library const& library, PluginFieldCollection const* fields,
                 TensorRTPhase phase = TensorRTPhase::kBUILD) {
    return Made(library.creator->createPlugin("node", fields, phase));
}

inline Dims dims(std::vector<int64_t> const& values) {
    Dims result{};
    result.nbDims = int32_t(values.size());
    for (size_t i = 0; i < values.size() && i < size_t(Dims::MAX_DIMS); ++i) result.d[i] = values[i];
    return result;
}

inline PluginTensorDesc desc(std::vector<int64_t> const& shape, DataType type) {
    PluginTensorDesc result{};
    result.dims = dims(shape);
    result.type = type;
    result.format = TensorFormat::kLINEAR;
    return result;
}

}  // namespace host
