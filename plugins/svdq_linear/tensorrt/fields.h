// A layer's fields: an ONNX node's attributes, and what an engine stores of the layer. Both shells read and write them
// here, so this knows a PluginField by its four members only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../launch.h"
#include "reason.h"

namespace svdq {

constexpr char kPluginName[] = "SvdqLinear";
constexpr char kPluginVersion[] = "1";
constexpr char kPluginNamespace[] = "";

// nvinfer1::PluginFieldType's numbers, the same from TensorRT 8.5 to 11; each shell asserts those of its headers.
enum FieldType : int32_t { kFloat32 = 1, kInt32 = 5, kChar = 6, kInt64 = 10 };

struct Field {
    char const* name;
    void const* data;
    int32_t type;
    int32_t length;
};

// The fields' values; spec.py has the same names and defaults. T is not among them: TensorRT says with every call which
// it is, and a network that allows both may settle on another than it asked about last.
struct Values {
    int32_t n = 0;
    int32_t k = 0;
    int32_t rank = 0;
    int32_t group_size = 64;
    int32_t act_bits = 4;
    int32_t act_signed = 1;
    int32_t layout_version = 0;
    float act_shift = 0.0F;
    char activation[12] = "none";
};

constexpr int32_t kFieldCount = 9;

// The field of number 0 <= index < kFieldCount, pointing into `values`.
Field field_of(Values const& values, int32_t index);

SvdqLayer layer_of(Values const& values, int32_t dtype = SVDQ_FLOAT16);

// "n3072_k768_r32_g64_a4s_none_shift00000000_layout1"
constexpr size_t kDescriptionSize = 128;
void describe(Values const& values, char (&text)[kDescriptionSize]);

// Reads fields in any order.
class FieldReader {
  public:
    // False, with a reason, where the field is unknown, given twice, or not of its type.
    bool take(Field const& field);

    // Of a nvinfer1::PluginFieldCollection, which may be null.
    template <typename Collection>
    bool take_all(Collection const* collection) {
        int32_t const count = collection == nullptr || collection->fields == nullptr ? 0 : collection->nbFields;
        for (int32_t i = 0; i < count; ++i) {
            auto const& field = collection->fields[i];
            if (!take({field.name, field.data, int32_t(field.type), field.length})) return false;
        }
        return true;
    }

    // False, with a reason, where a required field is missing or the layer is none that the kernels have.
    bool finish();

    Values const& values() const { return values_; }
    Reason const& reason() const { return reason_; }

  private:
    uint32_t seen_ = 0;
    Values values_;
    Reason reason_;
};

}  // namespace svdq
