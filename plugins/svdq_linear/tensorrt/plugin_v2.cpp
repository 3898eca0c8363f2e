// SvdqLinear as a plugin of TensorRT 8.5 and 8.6 (JetPack 5.1 and 6.0), which lack IPluginV3: the same launch behind
// IPluginV2DynamicExt, in a library of its own. float16 only, and no tactics: neither exists there.
//
// How TensorRT 8 finds the creator:
//   8.6  trtexec --dynamicPlugins and IPluginRegistry::loadLibrary call getPluginCreators, below.
//   8.5  trtexec --plugins and Python's ctypes.CDLL only open the library, so that it must register itself, with
//        whichever libnvinfer the process has: we link to none, so as to load where there is none.
// 8.6's loadLibrary refuses a library whose creators are registered already; hence only 8.5 is helped so.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <new>

#include "fields.h"
#include "inputs.h"

using namespace nvinfer1;

namespace svdq {
namespace {

static_assert(int32_t(PluginFieldType::kFLOAT32) == kFloat32 && int32_t(PluginFieldType::kINT32) == kInt32 &&
                  int32_t(PluginFieldType::kCHAR) == kChar,
              "fields.h has TensorRT's numbers");

constexpr int32_t kRefused = SVDQ_BAD_ARGUMENT;

// What an engine stores of a layer. TensorRT 8 takes bytes where 10 takes fields.
struct Stored {
    char magic[8];
    Values values;
};
constexpr char kMagic[8] = "SVDQv2";

// TensorRT keeps namespaces below 1024 bytes.
struct Namespace {
    char text[1024] = "";
    void set(char const* name) { snprintf(text, sizeof text, "%s", name == nullptr ? "" : name); }
};

class Plugin final : public IPluginV2DynamicExt {
  public:
    explicit Plugin(Values const& values) : values_(values) { describe(values_, description_); }

    char const* getPluginType() const noexcept override { return kPluginName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    void setPluginNamespace(char const* name) noexcept override { namespace_.set(name); }
    char const* getPluginNamespace() const noexcept override { return namespace_.text; }
    int32_t getNbOutputs() const noexcept override { return 1; }
    DataType getOutputDataType(int32_t, DataType const*, int32_t) const noexcept override { return DataType::kHALF; }

    DimsExprs getOutputDimensions(int32_t, DimsExprs const* inputs, int32_t count,
                                  IExprBuilder& builder) noexcept override {
        DimsExprs y{};
        y.nbDims = -1;  // an invalid shape is the only way to refuse
        Reason reason;
        if (count != input_count(layer()) || inputs[kX].nbDims < 1) {
            reason.refuse("it has %d inputs, x of %d dimensions; rank %d needs %d and at least 1", count,
                          count < 1 ? 0 : inputs[kX].nbDims, values_.rank, input_count(layer()));
            reason.print(description_);
            return y;
        }
        y = inputs[kX];
        y.d[y.nbDims - 1] = builder.constant(values_.n);
        return y;
    }

    bool supportsFormatCombination(int32_t position, PluginTensorDesc const* tensors, int32_t count,
                                   int32_t output_count) noexcept override {
        if (count != input_count(layer()) || output_count != 1 || position < 0 || position > count) return false;
        if (tensors[position].format != TensorFormat::kLINEAR) return false;
        return tensors[position].type == (position == kQweight ? DataType::kINT32 : DataType::kHALF);
    }

    // It cannot fail, so that wrong shapes are said here and refused by enqueue.
    void configurePlugin(DynamicPluginTensorDesc const* inputs, int32_t count, DynamicPluginTensorDesc const*,
                         int32_t) noexcept override {
        Reason reason;
        Shape shapes[kMaxInputs];
        for (int32_t i = 0; i < count && i < kMaxInputs; ++i) shapes[i] = shape_of(inputs[i].max);
        if (!check_inputs(layer(), shapes, count, &reason)) reason.print(description_);
    }

    size_t getWorkspaceSize(PluginTensorDesc const* inputs, int32_t count, PluginTensorDesc const*,
                            int32_t) const noexcept override {
        if (count < 1) return 0;
        SvdqLayer const node = layer();
        int64_t const rows = row_count(shape_of(inputs[kX].dims));
        return rows < 0 ? 0 : svdq_workspace_bytes(&node, rows);
    }

    // Called with the engine's context current; what fails here fails again in enqueue, which can say so.
    int32_t initialize() noexcept override {
        svdq_prepare();
        return 0;
    }
    void terminate() noexcept override {}

    int32_t enqueue(PluginTensorDesc const* input_descs, PluginTensorDesc const* output_descs,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override {
        SvdqLayer const node = layer();
        Reason reason;
        Shape shapes[kMaxInputs];
        for (int32_t i = 0; i < input_count(node); ++i) shapes[i] = shape_of(input_descs[i].dims);
        int64_t const rows = row_count(shapes[kX]);
        if (!check_inputs(node, shapes, input_count(node), &reason) ||
            !check_output(node, shapes[kX], shape_of(output_descs[0].dims), &reason)) {
            reason.print(description_);
            return kRefused;
        }
        if (rows == 0) return 0;
        SvdqConstants const constants = constants_of(node, inputs);
        int32_t const status =
            svdq_enqueue(&node, &constants, inputs[kX], outputs[0], rows, svdq_default_tile(&node, rows), workspace,
                         svdq_workspace_bytes(&node, rows), stream);
        if (status != SVDQ_OK) {
            reason.refuse("enqueue of %lld rows: %s", (long long)rows, svdq_status_text(status));
            reason.print(description_);
        }
        return status;
    }

    size_t getSerializationSize() const noexcept override { return sizeof(Stored); }
    void serialize(void* buffer) const noexcept override {
        Stored stored{};
        std::memcpy(stored.magic, kMagic, sizeof kMagic);
        stored.values = values_;
        std::memcpy(buffer, &stored, sizeof stored);
    }

    Plugin* clone() const noexcept override {
        auto* copy = new (std::nothrow) Plugin(values_);
        if (copy != nullptr) copy->namespace_ = namespace_;
        return copy;
    }
    void destroy() noexcept override { delete this; }

  private:
    SvdqLayer layer() const { return layer_of(values_); }

    Values values_;
    Namespace namespace_;
    char description_[kDescriptionSize];
};

class Creator final : public IPluginCreator {
  public:
    Creator() {
        Values const values;
        for (int32_t i = 0; i < kFieldCount; ++i) {
            Field const field = field_of(values, i);
            attributes_[i] = PluginField(field.name, nullptr, PluginFieldType(field.type), 1);
        }
    }

    char const* getPluginName() const noexcept override { return kPluginName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    void setPluginNamespace(char const* name) noexcept override { namespace_.set(name); }
    char const* getPluginNamespace() const noexcept override { return namespace_.text; }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }

    Plugin* createPlugin(char const* name, PluginFieldCollection const* fields) noexcept override {
        FieldReader reader;
        return made(name, reader, reader.take_all(fields));
    }

    Plugin* deserializePlugin(char const* name, void const* data, size_t length) noexcept override {
        FieldReader reader;
        Stored stored;
        if (data == nullptr || length != sizeof stored || std::memcmp(data, kMagic, sizeof kMagic) != 0) {
            Reason reason;
            reason.refuse("the engine holds %zu bytes of another plugin", length);
            reason.print(name == nullptr ? "" : name);
            return nullptr;
        }
        std::memcpy(&stored, data, sizeof stored);
        stored.values.activation[sizeof stored.values.activation - 1] = '\0';
        bool good = true;
        for (int32_t i = 0; good && i < kFieldCount; ++i) good = reader.take(field_of(stored.values, i));
        return made(name, reader, good);
    }

  private:
    Plugin* made(char const* name, FieldReader& reader, bool good) {
        Plugin* plugin = good && reader.finish() ? new (std::nothrow) Plugin(reader.values()) : nullptr;
        if (plugin == nullptr) {
            reader.reason().print(name == nullptr ? "" : name);
        } else {
            plugin->setPluginNamespace(namespace_.text);
        }
        return plugin;
    }

    Namespace namespace_;
    PluginField attributes_[kFieldCount];
    PluginFieldCollection collection_{kFieldCount, attributes_};
};

Creator creator;

struct RegisterIn85 {
    RegisterIn85() {
        void* const library = dlopen("libnvinfer.so.8", RTLD_LAZY | RTLD_NOLOAD);
        if (library == nullptr) return;
        auto const version = reinterpret_cast<int32_t (*)()>(dlsym(library, "getInferLibVersion"));
        auto const registry = reinterpret_cast<IPluginRegistry* (*)()>(dlsym(library, "getPluginRegistry"));
        if (version != nullptr && registry != nullptr && version() < 8600) registry()->registerCreator(creator, "");
        dlclose(library);
    }
} const register_in_85;

}  // namespace
}  // namespace svdq

extern "C" SVDQ_API IPluginCreator* const* getPluginCreators(int32_t& count) {
    static IPluginCreator* const creators[] = {&svdq::creator};
    count = 1;
    return creators;
}

// loadLibrary wants it to exist; reason.h says why it does nothing. 8.5's headers lack the argument's type.
extern "C" SVDQ_API void setLoggerFinder(void*) {}
