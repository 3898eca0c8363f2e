#include "inputs.h"

#include <cstdio>

namespace svdq {
namespace {

constexpr char const* kNames[kMaxInputs] = {"x", "qweight", "wscale", "inv_smooth", "down", "up", "bias"};

Shape constant(int64_t a) { return {1, {a}}; }
Shape constant(int64_t a, int64_t b) { return {2, {a, b}}; }
Shape constant(int64_t a, int64_t b, int64_t c) { return {3, {a, b, c}}; }

int64_t blocks(int64_t value, int64_t size) { return (value + size - 1) / size; }

// layout.py, line by line.
Shape constant_shape(SvdqLayer const& layer, int32_t position) {
    int64_t const groups = blocks(layer.k, layer.group_size);
    int64_t const channels = groups * layer.group_size;
    int64_t const columns = blocks(layer.n, 64);
    if (position == bias_position(layer)) return constant(columns * 64);
    switch (position) {
        case kQweight: return constant(columns, channels / 64, 512);
        case kWscale: return constant(groups, columns * 64);
        case kInvSmooth: return constant(channels);
        case kDown: return constant(channels / 64, layer.rank / 16, 1024);
        default: return constant(columns, layer.rank / 16, 1024);
    }
}

bool agree(int64_t a, int64_t b) { return a == b || a == Shape::kAny || b == Shape::kAny; }

bool agree(Shape const& a, Shape const& b) {
    if (a.rank != b.rank) return false;
    for (int32_t i = 0; i < a.rank; ++i) {
        if (!agree(a.dims[i], b.dims[i])) return false;
    }
    return true;
}

struct Text {
    char text[96];

    explicit Text(Shape const& shape) {
        size_t end = size_t(snprintf(text, sizeof text, "["));
        for (int32_t i = 0; i < shape.rank && end < sizeof text; ++i) {
            end += size_t(snprintf(text + end, sizeof text - end, i ? ", %lld" : "%lld", (long long)shape.dims[i]));
        }
        if (end < sizeof text) snprintf(text + end, sizeof text - end, "]");
    }
};

}  // namespace

int32_t input_count(SvdqLayer const& layer) { return layer.rank > 0 ? kMaxInputs : kMaxInputs - 2; }

SvdqConstants constants_of(SvdqLayer const& layer, void const* const* inputs) {
    bool const branch = layer.rank > 0;
    return {inputs[kQweight],
            inputs[kWscale],
            inputs[kInvSmooth],
            branch ? inputs[kDown] : nullptr,
            branch ? inputs[kUp] : nullptr,
            inputs[bias_position(layer)]};
}

int64_t row_count(Shape const& x) {
    int64_t rows = 1;
    for (int32_t i = 0; i + 1 < x.rank; ++i) {
        if (x.dims[i] < 0 || __builtin_mul_overflow(rows, x.dims[i], &rows)) return -1;
    }
    return rows;
}

bool check_inputs(SvdqLayer const& layer, Shape const* inputs, int32_t count, Reason* reason) {
    if (inputs == nullptr || count != input_count(layer)) {
        return reason->refuse("it has %d inputs; rank %d needs %d", count, layer.rank, input_count(layer));
    }
    Shape const& x = inputs[kX];
    if (x.rank < 1 || !agree(x.dims[x.rank - 1], layer.k)) {
        return reason->refuse("x is %s; its last dimension must be k = %d", Text(x).text, layer.k);
    }
    for (int32_t i = kQweight; i < count; ++i) {
        Shape const expected = constant_shape(layer, i);
        if (!agree(inputs[i], expected)) {
            return reason->refuse("%s is %s; it must be %s", kNames[i + 1 == count ? kMaxInputs - 1 : i],
                                  Text(inputs[i]).text, Text(expected).text);
        }
    }
    return true;
}

bool check_output(SvdqLayer const& layer, Shape const& x, Shape const& y, Reason* reason) {
    Shape expected = x;
    expected.dims[x.rank - 1] = layer.n;
    if (agree(y, expected)) return true;
    return reason->refuse("y is %s; it must be %s", Text(y).text, Text(expected).text);
}

}  // namespace svdq
