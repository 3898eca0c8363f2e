// SvdqLinear as a TensorRT plugin, for TensorRT 10.3 and later (IPluginV3).
//
// One binary, compiled against 10.3's headers, serves 10.3 to 11: the interfaces below have not changed, and it calls
// nothing of TensorRT's but the objects that it is handed. So it needs no libnvinfer at link time.
#pragma once

#include <NvInferRuntime.h>

#include "fields.h"
#include "inputs.h"

namespace svdq {

class Plugin final : public nvinfer1::IPluginV3,
                     public nvinfer1::IPluginV3OneCore,
                     public nvinfer1::IPluginV3OneBuild,
                     public nvinfer1::IPluginV3OneRuntime {
  public:
    explicit Plugin(Values const& values);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    Plugin* clone() noexcept override;

    // core
    char const* getPluginName() const noexcept override { return kPluginName; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

    // build
    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t getOutputDataTypes(nvinfer1::DataType* outputs, int32_t output_count, nvinfer1::DataType const* inputs,
                               int32_t count) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t count, nvinfer1::DimsExprs const* shape_inputs,
                            int32_t shape_count, nvinfer1::DimsExprs* outputs, int32_t output_count,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t count,
                                   int32_t output_count) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t count,
                            nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t count,
                            nvinfer1::DynamicPluginTensorDesc const* outputs,
                            int32_t output_count) const noexcept override;
    int32_t getNbTactics() noexcept override;
    int32_t getValidTactics(int32_t* tactics, int32_t count) noexcept override;
    char const* getTimingCacheID() noexcept override;
    char const* getMetadataString() noexcept override { return description_; }

    // runtime
    int32_t setTactic(int32_t tactic) noexcept override;
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t count,
                          nvinfer1::PluginTensorDesc const* outputs, int32_t output_count) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* input_descs, nvinfer1::PluginTensorDesc const* output_descs,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

  private:
    bool valid(int32_t tile) const;
    bool supports(int32_t position, nvinfer1::PluginTensorDesc const& tensor, nvinfer1::DataType x) const;
    int32_t refuse(Reason const& reason) const;

    Values values_;
    int64_t min_rows_ = -1;  // of the profile; -1 before configurePlugin
    int64_t max_rows_ = -1;
    int32_t tactic_ = 0;
    char description_[kDescriptionSize];
    char timing_id_[kDescriptionSize + 160];
    nvinfer1::PluginField stored_[kFieldCount];
    nvinfer1::PluginFieldCollection collection_{};
};

}  // namespace svdq
