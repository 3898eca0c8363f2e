#include "launch.h"

#include <cstdint>
#include <exception>
#include <string>

#include "driver.h"
#include "kernels/params.h"
#include "plan.h"

using namespace svdq;

namespace {

constexpr int kQuantizeThreads = 128;

bool aligned(void const* pointer, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

bool constants_are_valid(SvdqLayer const& layer, SvdqConstants const& c) {
    bool const there = c.qweight && c.wscale && c.inv_smooth && c.bias && (layer.rank > 0) == (c.down != nullptr) &&
                       (layer.rank > 0) == (c.up != nullptr);
    return there && aligned(c.qweight, 16) && aligned(c.wscale, 16) && aligned(c.inv_smooth, 16) && aligned(c.bias, 16) &&
           aligned(c.down, 16) && aligned(c.up, 16);
}

std::string type_of(SvdqLayer const& layer) { return layer.dtype == SVDQ_FLOAT16 ? "_f16" : "_bf16"; }

// What one call is about, once everything has been checked.
struct Call {
    SvdqLayer const& layer;
    SvdqConstants const& constants;
    Kernels* kernels = nullptr;
    Plan plan{};
    int m = 0, tile = 0;
    char* workspace = nullptr;
    void* stream = nullptr;

    bool bytes() const { return layer.act_bits == 8 || device_of(*kernels).wide; }
    template <class T> T* at(size_t offset) const { return reinterpret_cast<T*>(workspace + offset); }
};

int32_t quantize(Call const& call, void const* x) {
    SvdqLayer const& layer = call.layer;
    Plan const& plan = call.plan;
    if (!plan.quantizes) return SVDQ_OK;
    Workspace const& w = plan.workspace;
    QuantizeParams p{};
    p.x = x, p.inv_smooth = call.constants.inv_smooth, p.down = call.constants.down;
    p.codes = call.at<void>(w.codes), p.scales = call.at<void>(w.scales), p.hidden = call.at<float>(w.hidden);
    p.counters = call.at<uint32_t>(w.counters);
    p.counter_count = plan.splits > 1 ? static_cast<int32_t>(plan.multiply_grid.x * plan.multiply_grid.y) : 0;
    p.m = call.m, p.k = layer.k, p.steps = plan.steps, p.row_blocks = plan.row_blocks, p.rank = layer.rank;
    p.steps_per_warp = plan.steps_per_warp, p.warps_along_k = plan.warps_along_k;
    p.shift = layer.act_shift, p.is_signed = layer.act_signed;
    p.qmax = layer.act_bits == 16 ? 0.0f : static_cast<float>((1 << (layer.act_bits - layer.act_signed)) - 1);
    p.vector_loads = layer.k % 8 == 0 && aligned(x, 16);
    std::string const bits = layer.act_bits == 16 ? "_a16_g64" : (call.bytes() ? "_a8_g" : "_a4_g") + std::to_string(layer.group_size);
    return launch(*call.kernels, "svdq_quantize" + type_of(layer) + bits + "_r" + std::to_string(plan.rank_chunk),
                  plan.quantize_grid, kQuantizeThreads, &p, call.stream);
}

int32_t multiply_codes(Call const& call, void* y) {
    SvdqLayer const& layer = call.layer;
    Plan const& plan = call.plan;
    Workspace const& w = plan.workspace;
    MultiplyParams p{};
    p.codes = call.at<void>(w.codes), p.scales = call.at<void>(w.scales), p.hidden = call.at<float>(w.hidden);
    p.qweight = call.constants.qweight, p.wscale = call.constants.wscale, p.up = call.constants.up, p.bias = call.constants.bias;
    p.y = y, p.partial = call.at<float>(w.partial), p.counters = call.at<uint32_t>(w.counters);
    p.m = call.m, p.n = layer.n, p.steps = plan.steps, p.row_blocks = plan.row_blocks, p.column_blocks = plan.column_blocks;
    p.rank = layer.rank, p.group_shift = layer.group_size == 128, p.hidden_splits = plan.hidden_splits;
    p.steps_per_split = plan.steps_per_split, p.activation = layer.activation;
    p.vector_stores = layer.n % 8 == 0 && aligned(y, 16);
    Tile const& t = tile(call.tile);
    // 4-bit codes that are stored as bytes are small signed bytes, signed or not.
    std::string const codes = call.bytes() ? (layer.act_bits == 8 && !layer.act_signed ? "_u8" : "_s8")
                                           : (layer.act_signed ? "_s4" : "_u4");
    return launch(*call.kernels, std::string("svdq_") + t.name + type_of(layer) + codes, plan.multiply_grid, t.threads, &p,
                  call.stream);
}

int32_t multiply_weight_only(Call const& call, void const* x, void* y) {
    SvdqLayer const& layer = call.layer;
    Plan const& plan = call.plan;
    GemvParams p{};
    p.x = x, p.inv_smooth = call.constants.inv_smooth, p.hidden = call.at<float>(plan.workspace.hidden);
    p.qweight = call.constants.qweight, p.wscale = call.constants.wscale, p.up = call.constants.up, p.bias = call.constants.bias;
    p.y = y, p.m = call.m, p.n = layer.n, p.k = layer.k, p.steps = plan.steps, p.row_blocks = plan.row_blocks;
    p.column_blocks = plan.column_blocks, p.rank = layer.rank, p.group_shift = layer.group_size == 128;
    p.hidden_splits = plan.hidden_splits, p.activation = layer.activation, p.shift = layer.act_shift;
    p.vector_loads = layer.k % 8 == 0 && aligned(x, 16);
    Tile const& t = tile(call.tile);
    return launch(*call.kernels, std::string("svdq_") + t.name + type_of(layer), plan.multiply_grid, t.threads, &p, call.stream);
}

enum Halves { kQuantize = 1, kMultiply = 2 };

int32_t enqueue(SvdqLayer const* layer, SvdqConstants const* constants, void const* x, void* y, int64_t m, int32_t index,
                void* workspace, size_t workspace_bytes, void* stream, int halves) noexcept {
    try {
        if (!layer || !layer_is_valid(*layer)) return SVDQ_BAD_LAYER;
        if (!constants || !constants_are_valid(*layer, *constants) || !tile_is_valid(*layer, m, index)) return SVDQ_BAD_ARGUMENT;
        if (m == 0) return SVDQ_OK;
        bool const pointers = x && aligned(x, 2) && (!(halves & kMultiply) || (y && aligned(y, 2)));
        if (!pointers || !aligned(workspace, 256)) return SVDQ_BAD_ARGUMENT;
        Call call{*layer, *constants};
        if (int32_t const status = current_kernels(&call.kernels)) return status;
        call.plan = plan(*layer, m, index, device_of(*call.kernels));
        if (call.plan.workspace.bytes > 0 && (!workspace || workspace_bytes < call.plan.workspace.bytes)) return SVDQ_BAD_ARGUMENT;
        call.m = static_cast<int>(m), call.tile = index, call.stream = stream;
        call.workspace = static_cast<char*>(workspace);
        if (halves & kQuantize)
            if (int32_t const status = quantize(call, x)) return status;
        if (!(halves & kMultiply)) return SVDQ_OK;
        return layer->act_bits == 16 ? multiply_weight_only(call, x, y) : multiply_codes(call, y);
    } catch (std::exception const&) {  // out of host memory
        return SVDQ_LAUNCH_FAILED;
    }
}

}  // namespace

extern "C" {

char const* svdq_status_text(int32_t status) {
    switch (status) {
        case SVDQ_OK: return "success";
        case SVDQ_BAD_LAYER: return "the layer's fields are out of range or do not fit together";
        case SVDQ_BAD_ARGUMENT: return "a pointer is null or misaligned, the tile or number of rows is invalid, or the workspace is too small";
        case SVDQ_NO_DRIVER: return "libcuda.so.1 could not be opened: there is no NVIDIA driver";
        case SVDQ_NO_CONTEXT: return "the calling thread has no current CUDA context";
        case SVDQ_NO_KERNELS: return "the library holds no kernels for this GPU; build it with python -m plugins.build --target local";
        case SVDQ_LAUNCH_FAILED: return "the driver refused the launch";
        default: return "unknown status";
    }
}

int32_t svdq_check_layer(SvdqLayer const* layer) { return layer && layer_is_valid(*layer) ? SVDQ_OK : SVDQ_BAD_LAYER; }

int32_t svdq_tile_count(void) { return tile_count(); }

char const* svdq_tile_name(int32_t index) { return index >= 0 && index < tile_count() ? tile(index).name : nullptr; }

int32_t svdq_tile_valid(SvdqLayer const* layer, int64_t m, int32_t index) {
    return layer && layer_is_valid(*layer) && tile_is_valid(*layer, m, index);
}

int32_t svdq_default_tile(SvdqLayer const* layer, int64_t m) {
    return layer && layer_is_valid(*layer) ? default_tile(*layer, m) : -1;
}

size_t svdq_workspace_bytes(SvdqLayer const* layer, int64_t m) {
    return layer && layer_is_valid(*layer) ? workspace_bound(*layer, m, kLargestDevice) : 0;
}

int32_t svdq_prepare(void) {
    try {
        Kernels* kernels = nullptr;
        return current_kernels(&kernels);
    } catch (std::exception const&) {
        return SVDQ_NO_KERNELS;
    }
}

int32_t svdq_enqueue(SvdqLayer const* layer, SvdqConstants const* constants, void const* x, void* y, int64_t m, int32_t tile,
                     void* workspace, size_t workspace_bytes, void* stream) {
    return enqueue(layer, constants, x, y, m, tile, workspace, workspace_bytes, stream, kQuantize | kMultiply);
}

int32_t svdq_enqueue_quantize(SvdqLayer const* layer, SvdqConstants const* constants, void const* x, int64_t m, int32_t tile,
                              void* workspace, size_t workspace_bytes, void* stream) {
    return enqueue(layer, constants, x, nullptr, m, tile, workspace, workspace_bytes, stream, kQuantize);
}

int32_t svdq_enqueue_multiply(SvdqLayer const* layer, SvdqConstants const* constants, void const* x, void* y, int64_t m,
                              int32_t tile, void* workspace, size_t workspace_bytes, void* stream) {
    return enqueue(layer, constants, x, y, m, tile, workspace, workspace_bytes, stream, kMultiply);
}

}  // extern "C"
