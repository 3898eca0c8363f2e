// A stand-in for launch.cpp that records what the shells ask of it.
#pragma once

#include "plugins/svdq_linear/launch.h"

struct FakeLaunch {
    int prepared;  // number of calls of svdq_prepare
    int enqueued;  // number of calls of svdq_enqueue, of which these were the last one's arguments
    SvdqLayer layer;
    SvdqConstants constants;
    void const* x;
    void* y;
    int64_t m;
    int32_t tile;
    void* workspace;
    size_t workspace_bytes;
    void* stream;
    int32_t prepare_status;  // what the next calls return
    int32_t enqueue_status;
};

// Tiles: 0 is valid for every quantised layer and any m, 1 for m <= 32, 2 for m >= 64; 3 for weight-only layers and
// m <= 8, 4 for those and any m.
constexpr int32_t kFakeTiles = 5;
constexpr int64_t kFakeMostRows = 1 << 20;

// svdq_workspace_bytes of the stand-in.
inline size_t fake_workspace(SvdqLayer const& layer, int64_t m) {
    return size_t(m) * (size_t(layer.k) + size_t(layer.rank) * 4) + size_t(layer.dtype);
}
