// How a layer with m rows is cut into launches: pure arithmetic, no driver.
#pragma once

#include <cstddef>
#include <cstdint>

#include "launch.h"

namespace svdq {

enum class Kind { staged, direct, gemv };

// A row of kernels/tiles.h.
struct Tile {
    char const* name;
    Kind kind;
    int row_blocks;     // of 16 rows, per thread block; for gemv rows
    int column_blocks;  // of 64 columns, per thread block
    int threads;
    int min_steps;      // of 64 channels, below which splitting K further does not pay
};

int tile_count();
Tile const& tile(int index);  // 0 <= index < tile_count()

// What decides about a GPU. `wide`: 4-bit codes are stored as bytes, there being no 4-bit instructions.
struct Device {
    int processors;
    bool wide;
};

// The largest GPU that the bounds of svdq_workspace_bytes hold for.
constexpr Device kLargestDevice = {256, true};

struct Dim {
    uint32_t x, y, z;
};

// Byte offsets into the workspace; each a multiple of 256.
struct Workspace {
    size_t counters, codes, scales, hidden, partial, bytes;
};

struct Plan {
    int row_blocks, column_blocks, steps;  // padded; see kernels/params.h
    bool quantizes;                        // whether there is anything for the first kernel to do
    Dim quantize_grid, multiply_grid;
    int warps_along_k, steps_per_warp, hidden_splits;
    int rank_chunk;                        // 0, 32 or 128
    int splits, steps_per_split;
    Workspace workspace;
};

bool layer_is_valid(SvdqLayer const& layer);
bool tile_is_valid(SvdqLayer const& layer, int64_t m, int tile);
int default_tile(SvdqLayer const& layer, int64_t m);

// For a valid layer and tile, 0 < m <= kMostRows.
Plan plan(SvdqLayer const& layer, int64_t m, int tile, Device const& device);
size_t workspace_bound(SvdqLayer const& layer, int64_t m, Device const& device);

constexpr int64_t kMostRows = int64_t(1) << 24;

}  // namespace svdq
