// A layer's inputs: which is where, and what shape each has in the packed layout of plugins/svdq_linear/layout.py.
#pragma once

#include <cstdint>

#include "../launch.h"
#include "reason.h"

namespace svdq {

// Inputs by position; where rank is 0 there are neither down nor up, and bias takes their place.
enum Input : int32_t { kX = 0, kQweight = 1, kWscale = 2, kInvSmooth = 3, kDown = 4, kUp = 5 };
constexpr int32_t kMaxInputs = 7;

int32_t input_count(SvdqLayer const& layer);
inline int32_t bias_position(SvdqLayer const& layer) { return input_count(layer) - 1; }
SvdqConstants constants_of(SvdqLayer const& layer, void const* const* inputs);

struct Shape {
    static constexpr int32_t kMaxRank = 8;  // nvinfer1::Dims has as many
    static constexpr int64_t kAny = -1;     // a dimension that is not known yet

    int32_t rank = -1;  // -1: no shape
    int64_t dims[kMaxRank] = {};
};

// From nvinfer1::Dims of either width.
template <typename Dims>
Shape shape_of(Dims const& dims) {
    Shape shape;
    if (dims.nbDims < 0 || dims.nbDims > Shape::kMaxRank) return shape;
    shape.rank = dims.nbDims;
    for (int32_t i = 0; i < dims.nbDims; ++i) shape.dims[i] = dims.d[i];
    return shape;
}

// Rows that x, of at least one dimension, holds: the product of all dimensions but the last. -1 where one is unknown or
// the product exceeds 63 bits.
int64_t row_count(Shape const& x);

// Whether all inputs, `count` of them in the node's order, are this layer's. kAny agrees with everything.
bool check_inputs(SvdqLayer const& layer, Shape const* inputs, int32_t count, Reason* reason);

// Whether y is x with n channels instead of k.
bool check_output(SvdqLayer const& layer, Shape const& x, Shape const& y, Reason* reason);

}  // namespace svdq
