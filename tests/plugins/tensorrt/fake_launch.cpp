#include "fake_launch.h"

#include <cmath>
#include <cstring>

namespace {
FakeLaunch fake;
}

extern "C" SVDQ_API FakeLaunch* fake_launch() { return &fake; }

char const* svdq_status_text(int32_t status) {
    switch (status) {
        case SVDQ_OK: return "ok";
        case SVDQ_BAD_LAYER: return "fake bad layer";
        case SVDQ_NO_DRIVER: return "fake no driver";
        default: return "fake failure";
    }
}

int32_t svdq_check_layer(SvdqLayer const* layer) {
    bool const good =
        layer->n > 0 && layer->k > 0 && layer->rank >= 0 && layer->rank % 16 == 0 &&
        (layer->group_size == 64 || layer->group_size == 128) &&
        (layer->act_bits == 4 || layer->act_bits == 8 || (layer->act_bits == 16 && layer->act_signed == 1)) &&
        layer->act_signed >= 0 && layer->act_signed <= 1 && layer->activation >= 0 && layer->activation <= 2 &&
        layer->dtype >= 0 && layer->dtype <= 1 && std::isfinite(layer->act_shift);
    return good ? SVDQ_OK : SVDQ_BAD_LAYER;
}

int32_t svdq_tile_count(void) { return kFakeTiles; }
char const* svdq_tile_name(int32_t) { return "fake"; }

int32_t svdq_tile_valid(SvdqLayer const* layer, int64_t m, int32_t tile) {
    if (m < 0) return 0;
    bool const weight_only = layer->act_bits == 16;
    switch (tile) {
        case 0: return !weight_only;
        case 1: return !weight_only && m <= 32;
        case 2: return !weight_only && m >= 64;
        case 3: return weight_only && m <= 8;
        case 4: return weight_only;
        default: return 0;
    }
}

int32_t svdq_default_tile(SvdqLayer const* layer, int64_t m) {
    if (m > kFakeMostRows || layer->dtype < 0) return -1;
    if (layer->act_bits == 16) return m <= 8 ? 3 : 4;
    return m <= 32 ? 1 : 0;
}

size_t svdq_workspace_bytes(SvdqLayer const* layer, int64_t m) { return fake_workspace(*layer, m); }

int32_t svdq_prepare(void) {
    ++fake.prepared;
    return fake.prepare_status;
}

// Computes nothing but what shows that each pointer came through: y = bias, in 16-bit elements of any kind.
int32_t svdq_enqueue(SvdqLayer const* layer, SvdqConstants const* constants, void const* x, void* y, int64_t m,
                     int32_t tile, void* workspace, size_t workspace_bytes, void* stream) {
    ++fake.enqueued;
    fake.layer = *layer;
    fake.constants = *constants;
    fake.x = x;
    fake.y = y;
    fake.m = m;
    fake.tile = tile;
    fake.workspace = workspace;
    fake.workspace_bytes = workspace_bytes;
    fake.stream = stream;
    size_t const row = size_t(layer->n) * 2;
    if (fake.enqueue_status == SVDQ_OK && constants->bias != nullptr && y != nullptr) {
        for (int64_t i = 0; i < m; ++i) std::memcpy(static_cast<char*>(y) + size_t(i) * row, constants->bias, row);
    }
    return fake.enqueue_status;
}
