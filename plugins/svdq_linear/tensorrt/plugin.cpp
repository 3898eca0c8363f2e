#include "plugin.h"

#include <new>

using namespace nvinfer1;

namespace svdq {
namespace {

static_assert(int32_t(PluginFieldType::kFLOAT32) == kFloat32 && int32_t(PluginFieldType::kINT32) == kInt32 &&
                  int32_t(PluginFieldType::kCHAR) == kChar && int32_t(PluginFieldType::kINT64) == kInt64,
              "fields.h has TensorRT's numbers");

constexpr int32_t kRefused = SVDQ_BAD_ARGUMENT;  // any status but 0 would do

// SvdqType, or kNoType for a type that the kernels do not have.
constexpr int32_t kNoType = -1;
int32_t dtype_of(DataType type) {
    switch (type) {
        case DataType::kHALF: return SVDQ_FLOAT16;
        case DataType::kBF16: return SVDQ_BFLOAT16;
        default: return kNoType;
    }
}

// A dimension that is no constant while the network is built agrees with everything; enqueue's shapes are checked anew.
Shape shape_of(DimsExprs const& dims) {
    Shape shape;
    if (dims.nbDims < 0 || dims.nbDims > Shape::kMaxRank) return shape;
    shape.rank = dims.nbDims;
    for (int32_t i = 0; i < dims.nbDims; ++i) {
        shape.dims[i] = dims.d[i]->isConstant() ? dims.d[i]->getConstantValue() : Shape::kAny;
    }
    return shape;
}

}  // namespace

Plugin::Plugin(Values const& values) : values_(values) {
    describe(values_, description_);
#ifdef SVDQ_SOURCE_HASH
    static_assert(sizeof SVDQ_SOURCE_HASH <= 128, "timing_id_ has room for 128");
    snprintf(timing_id_, sizeof timing_id_, "%s_%s", description_, SVDQ_SOURCE_HASH);
#endif
}

int32_t Plugin::refuse(Reason const& reason) const {
    reason.print(description_);
    return kRefused;
}

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

Plugin* Plugin::clone() noexcept {
    auto* copy = new (std::nothrow) Plugin(values_);
    if (copy != nullptr) {
        copy->min_rows_ = min_rows_;
        copy->max_rows_ = max_rows_;
        copy->tactic_ = tactic_;
    }
    return copy;
}

// ---- build ----------------------------------------------------------------------------------------------------------

int32_t Plugin::getOutputDataTypes(DataType* outputs, int32_t output_count, DataType const* inputs,
                                   int32_t count) const noexcept {
    Reason reason;
    if (output_count != 1 || count != input_count(layer_of(values_))) {
        reason.refuse("it has %d inputs and %d outputs; rank %d needs %d and 1", count, output_count, values_.rank,
                      input_count(layer_of(values_)));
        return refuse(reason);
    }
    if (dtype_of(inputs[kX]) == kNoType) {
        reason.refuse("x has TensorRT's data type %d; it must be float16 or bfloat16: export the model in one of them",
                      int32_t(inputs[kX]));
        return refuse(reason);
    }
    outputs[0] = inputs[kX];
    return 0;
}

int32_t Plugin::getOutputShapes(DimsExprs const* inputs, int32_t count, DimsExprs const*, int32_t, DimsExprs* outputs,
                                int32_t output_count, IExprBuilder& builder) noexcept {
    Reason reason;
    Shape shapes[kMaxInputs];
    for (int32_t i = 0; i < count && i < kMaxInputs; ++i) shapes[i] = shape_of(inputs[i]);
    if (output_count != 1 || !check_inputs(layer_of(values_), shapes, count, &reason)) return refuse(reason);
    IDimensionExpr const* columns = builder.constant(values_.n);
    if (columns == nullptr) return kRefused;
    outputs[0] = inputs[kX];
    outputs[0].d[outputs[0].nbDims - 1] = columns;
    return 0;
}

bool Plugin::supports(int32_t position, PluginTensorDesc const& tensor, DataType x) const {
    if (tensor.format != TensorFormat::kLINEAR) return false;
    if (position == kQweight) return tensor.type == DataType::kINT32;
    return tensor.type == x && dtype_of(x) != kNoType;
}

bool Plugin::supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors, int32_t count,
                                       int32_t output_count) noexcept {
    if (count != input_count(layer_of(values_)) || output_count != 1) return false;
    if (position < 0 || position >= count + output_count) return false;
    return supports(position, tensors[position].desc, tensors[kX].desc.type);
}

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* inputs, int32_t count, DynamicPluginTensorDesc const*,
                                int32_t) noexcept {
    Reason reason;
    Shape shapes[kMaxInputs];
    for (int32_t i = 0; i < count && i < kMaxInputs; ++i) shapes[i] = shape_of(inputs[i].max);
    if (!check_inputs(layer_of(values_), shapes, count, &reason)) return refuse(reason);
    int64_t const min = row_count(shape_of(inputs[kX].min));
    int64_t const max = row_count(shape_of(inputs[kX].max));
    SvdqLayer const layer = layer_of(values_, dtype_of(inputs[kX].desc.type));
    if (min < 0 || max < 0 || svdq_default_tile(&layer, max) < 0) {
        reason.refuse("no kernel covers the profile, which has %lld to %lld rows (-1: unknown or beyond 63 bits)",
                      (long long)min, (long long)max);
        return refuse(reason);
    }
    min_rows_ = min;
    max_rows_ = max;
    return 0;
}

// TensorRT hands this many bytes to every enqueue of at most these shapes, whichever the tactic.
size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t count, DynamicPluginTensorDesc const*,
                                int32_t) const noexcept {
    if (count < 1 || dtype_of(inputs[kX].desc.type) == kNoType) return 0;
    int64_t const rows = row_count(shape_of(inputs[kX].max));
    SvdqLayer const layer = layer_of(values_, dtype_of(inputs[kX].desc.type));
    return rows < 0 ? 0 : svdq_workspace_bytes(&layer, rows);
}

// A tactic is timed at the profile's optimum and then runs everything within it. Where no tile covers a wide profile,
// tactic 0 remains: it picks a tile at each enqueue.
bool Plugin::valid(int32_t tile) const {
    SvdqLayer const layer = layer_of(values_);
    return min_rows_ >= 0 && svdq_tile_valid(&layer, min_rows_, tile) && svdq_tile_valid(&layer, max_rows_, tile);
}

int32_t Plugin::getNbTactics() noexcept {
    int32_t count = 0;
    for (int32_t tile = 0; tile < svdq_tile_count(); ++tile) count += valid(tile) ? 1 : 0;
    return count;
}

// Tactic = tile + 1, because 0 is TensorRT's name for "no tactic chosen".
int32_t Plugin::getValidTactics(int32_t* tactics, int32_t count) noexcept {
    int32_t written = 0;
    for (int32_t tile = 0; tile < svdq_tile_count() && written < count; ++tile) {
        if (valid(tile)) tactics[written++] = tile + 1;
    }
    return written == count ? 0 : kRefused;
}

// TensorRT adds shapes and formats itself. Timings of other kernels must not be reused, so a build that does not know
// its own source has no timing cache.
char const* Plugin::getTimingCacheID() noexcept {
#ifdef SVDQ_SOURCE_HASH
    return timing_id_;
#else
    return nullptr;
#endif
}

// ---- runtime --------------------------------------------------------------------------------------------------------

int32_t Plugin::setTactic(int32_t tactic) noexcept {
    if (tactic < 0 || tactic > svdq_tile_count()) {
        Reason reason;
        reason.refuse("tactic %d does not exist, this library has %d: the engine is another library's", tactic,
                      svdq_tile_count());
        return refuse(reason);
    }
    tactic_ = tactic;
    return 0;
}

int32_t Plugin::onShapeChange(PluginTensorDesc const* inputs, int32_t count, PluginTensorDesc const* outputs,
                              int32_t output_count) noexcept {
    Reason reason;
    Shape shapes[kMaxInputs];
    for (int32_t i = 0; i < count && i < kMaxInputs; ++i) shapes[i] = shape_of(inputs[i].dims);
    if (!check_inputs(layer_of(values_), shapes, count, &reason)) return refuse(reason);
    if (output_count != 1) {
        reason.refuse("it has %d outputs; it must have 1", output_count);
        return refuse(reason);
    }
    if (!check_output(layer_of(values_), shapes[kX], shape_of(outputs[0].dims), &reason)) return refuse(reason);
    for (int32_t i = 0; i < count + 1; ++i) {
        PluginTensorDesc const& tensor = i < count ? inputs[i] : outputs[0];
        if (!supports(i, tensor, inputs[kX].type)) {
            reason.refuse("tensor %d has data type %d in format %d, where x has %d", i, int32_t(tensor.type),
                          int32_t(tensor.format), int32_t(inputs[kX].type));
            return refuse(reason);
        }
    }
    return 0;
}

int32_t Plugin::enqueue(PluginTensorDesc const* input_descs, PluginTensorDesc const*, void const* const* inputs,
                        void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    SvdqLayer const layer = layer_of(values_, dtype_of(input_descs[kX].type));
    int64_t const rows = row_count(shape_of(input_descs[kX].dims));
    if (rows == 0) return 0;  // an empty tensor's pointers may be null
    SvdqConstants const constants = constants_of(layer, inputs);
    int32_t const tile = tactic_ > 0 ? tactic_ - 1 : svdq_default_tile(&layer, rows);
    // TensorRT does not say how large the workspace is: it is what getWorkspaceSize asked for at the profile's maximum,
    // so at least what these rows need.
    int32_t const status = svdq_enqueue(&layer, &constants, inputs[kX], outputs[0], rows, tile, workspace,
                                        svdq_workspace_bytes(&layer, rows), stream);
    if (status != SVDQ_OK) {
        Reason reason;
        reason.refuse("enqueue of %lld rows with tactic %d: %s", (long long)rows, tactic_, svdq_status_text(status));
        reason.print(description_);
    }
    return status;
}

// The kernels are loaded here rather than by the first enqueue, which may be one that a CUDA graph records. Failing is
// no matter yet: without a GPU there is no enqueue either, and with one it says why.
IPluginV3* Plugin::attachToContext(IPluginResourceContext*) noexcept {
    svdq_prepare();
    return clone();
}

PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
    for (int32_t i = 0; i < kFieldCount; ++i) {
        Field const field = field_of(values_, i);
        stored_[i] = PluginField(field.name, field.data, PluginFieldType(field.type), field.length);
    }
    collection_ = {kFieldCount, stored_};
    return &collection_;
}

}  // namespace svdq
