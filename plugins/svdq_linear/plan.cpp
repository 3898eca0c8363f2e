#include "plan.h"

#include <algorithm>
#include <cmath>

#include "kernels/tiles.h"

namespace svdq {
namespace {

#define STAGED(name, warps_m, warps_n, blocks, stages) {#name, Kind::staged, warps_m * blocks, warps_n, 32 * warps_m * warps_n, 8},
#define DIRECT(name, blocks, warps) {#name, Kind::direct, blocks, 1, 32 * warps, 2 * warps},
#define GEMV(name, rows, warps) {#name, Kind::gemv, rows, 1, 32 * warps, 0},
constexpr Tile kTiles[] = {SVDQ_TILES(STAGED, DIRECT, GEMV)};
#undef STAGED
#undef DIRECT
#undef GEMV

constexpr int kTileRows = 256;         // rows are padded to whole tiles of every kernel
constexpr int kQuantizeWarps = 4;      // as quantize::kWarps
constexpr int kMostSplits = 8;         // of K, in either kernel
constexpr int kMostHiddenSplits = 4;   // with 64 rows or more: each tile of the multiplication adds them up again
constexpr int kSplitRows = 64;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Blocks in flight: two per processor fill it, as registers allow no more of the large tiles.
int64_t blocks_wanted(Device const& device) { return 2 * int64_t(device.processors); }

int padded_row_blocks(int64_t m) { return static_cast<int>(divide_up(m, kTileRows) * (kTileRows / 16)); }
int padded_steps(SvdqLayer const& layer) {
    int const group_steps = layer.group_size / 64;
    return static_cast<int>(divide_up(layer.k, layer.group_size)) * group_steps;
}

// Parts of `steps` in multiples of `unit`, at most `most`: returns steps per part.
int part(int steps, int64_t most, int unit) {
    int64_t const units = divide_up(steps, unit);
    return static_cast<int>(divide_up(units, std::max<int64_t>(1, std::min(most, units)))) * unit;
}

void plan_quantize(Plan& p, SvdqLayer const& layer, int64_t m, Device const& device) {
    bool const few = m < kSplitRows;
    int64_t const row_blocks = divide_up(m, 16);
    p.warps_along_k = few ? kQuantizeWarps : 1;
    p.rank_chunk = layer.rank == 0 ? 0 : layer.rank <= 32 ? 32 : 128;
    p.quantizes = layer.act_bits < 16 || layer.rank > 0;
    p.quantize_grid.x = static_cast<uint32_t>(few ? row_blocks : divide_up(row_blocks, kQuantizeWarps));
    int64_t const wanted = 2 * blocks_wanted(device) / p.quantize_grid.x;
    int64_t const most = std::clamp<int64_t>(wanted, 1, few ? kMostSplits : kMostHiddenSplits);
    p.steps_per_warp = part(p.steps, most * p.warps_along_k, layer.group_size / 64);
    p.hidden_splits = static_cast<int>(divide_up(divide_up(p.steps, p.steps_per_warp), p.warps_along_k));
    p.quantize_grid.y = p.hidden_splits;
    p.quantize_grid.z = p.rank_chunk == 0 ? 1 : static_cast<uint32_t>(divide_up(layer.rank, p.rank_chunk));
}

void plan_multiply(Plan& p, int64_t m, Tile const& t, Device const& device) {
    if (t.kind == Kind::gemv) {
        p.multiply_grid = {static_cast<uint32_t>(divide_up(m, t.row_blocks)), static_cast<uint32_t>(p.column_blocks), 1};
        p.splits = 1, p.steps_per_split = p.steps;
        return;
    }
    int64_t const rows = divide_up(m, 16 * t.row_blocks), columns = divide_up(p.column_blocks, t.column_blocks);
    int64_t const most = std::clamp<int64_t>(blocks_wanted(device) / (rows * columns), 1, kMostSplits);
    p.steps_per_split = part(p.steps, std::min<int64_t>(most, std::max(1, p.steps / t.min_steps)), 1);
    p.splits = static_cast<int>(divide_up(p.steps, p.steps_per_split));
    p.multiply_grid = {static_cast<uint32_t>(rows), static_cast<uint32_t>(columns), static_cast<uint32_t>(p.splits)};
}

Workspace layout(Plan const& p, SvdqLayer const& layer, Tile const& t, Device const& device) {
    Workspace w{};
    size_t const rows = 16 * size_t(p.row_blocks);
    bool const split = p.splits > 1, codes = layer.act_bits < 16;
    size_t at = 0;
    auto const take = [&at](size_t bytes) {
        size_t const here = at;
        at += aligned(bytes);
        return here;
    };
    w.counters = take(split ? 4 * size_t(p.multiply_grid.x) * p.multiply_grid.y : 0);
    w.codes = take(codes ? rows * 64 * p.steps / (device.wide || layer.act_bits == 8 ? 1 : 2) : 0);
    w.scales = take(codes ? 2 * rows * p.steps / (layer.group_size / 64) : 0);
    w.hidden = take(4 * rows * layer.rank * p.hidden_splits);
    w.partial = take(split ? 4 * size_t(p.multiply_grid.x) * p.multiply_grid.y * p.splits * t.row_blocks * 16 * t.column_blocks * 64 : 0);
    w.bytes = at;
    return w;
}

}  // namespace

int tile_count() { return static_cast<int>(sizeof kTiles / sizeof *kTiles); }
Tile const& tile(int index) { return kTiles[index]; }

bool layer_is_valid(SvdqLayer const& layer) {
    constexpr int kMost = 1 << 24;
    bool const sizes = layer.n > 0 && layer.n <= kMost && layer.k > 0 && layer.k <= kMost && layer.rank >= 0 &&
                       layer.rank <= 1 << 16 && layer.rank % 16 == 0 && (layer.group_size == 64 || layer.group_size == 128);
    bool const bits = layer.act_bits == 4 || layer.act_bits == 8 || layer.act_bits == 16;
    bool const sign = layer.act_signed == 1 || (layer.act_signed == 0 && layer.act_bits < 16);
    bool const names = layer.activation >= SVDQ_NONE && layer.activation <= SVDQ_SILU && layer.dtype >= SVDQ_FLOAT16 &&
                       layer.dtype <= SVDQ_BFLOAT16;
    return sizes && bits && sign && names && std::isfinite(layer.act_shift);
}

bool tile_is_valid(SvdqLayer const& layer, int64_t m, int index) {
    if (index < 0 || index >= tile_count() || m < 0 || m > kMostRows) return false;
    Tile const& t = tile(index);
    if ((t.kind == Kind::gemv) != (layer.act_bits == 16)) return false;
    // A direct tile reads all weights again for every block of rows: it is for few of them.
    return t.kind != Kind::direct || m <= 8 * 16 * t.row_blocks;
}

int default_tile(SvdqLayer const& layer, int64_t m) {
    // The first tile that takes all rows in one block, else the largest whose last block is at least half full.
    int found = -1;
    for (int i = 0; i < tile_count(); ++i) {
        if (!tile_is_valid(layer, m, i)) continue;
        int64_t const rows = int64_t(tile(i).row_blocks) * (tile(i).kind == Kind::gemv ? 1 : 16);
        bool const wasteful = found >= 0 && m % rows != 0 && m % rows <= rows / 2 && m < 8 * rows;
        if (found < 0 || !wasteful) found = i;
        if (m <= rows) break;
    }
    return found;
}

Plan plan(SvdqLayer const& layer, int64_t m, int index, Device const& device) {
    Plan p{};
    p.row_blocks = padded_row_blocks(m);
    p.column_blocks = static_cast<int>(divide_up(layer.n, 64));
    p.steps = padded_steps(layer);
    plan_quantize(p, layer, m, device);
    plan_multiply(p, m, tile(index), device);
    p.workspace = layout(p, layer, tile(index), device);
    return p;
}

size_t workspace_bound(SvdqLayer const& layer, int64_t m, Device const& device) {
    // What each part can need for any number of rows up to m, whatever the tile: splits are few where rows are many.
    m = std::clamp<int64_t>(m, 1, kMostRows);
    Plan p{};
    p.row_blocks = padded_row_blocks(m), p.steps = padded_steps(layer), p.column_blocks = static_cast<int>(divide_up(layer.n, 64));
    size_t const rows = 16 * size_t(p.row_blocks), steps = p.steps;
    size_t total = 0;
    if (layer.act_bits < 16) {
        total += aligned(rows * 64 * steps / (device.wide || layer.act_bits == 8 ? 1 : 2));
        total += aligned(2 * rows * steps / (layer.group_size / 64));
    }
    size_t const hidden_rows = std::max(size_t(kMostSplits) * kTileRows, size_t(kMostHiddenSplits) * rows);
    total += aligned(4 * hidden_rows * layer.rank);
    size_t partial = 0;
    for (int i = 0; i < tile_count(); ++i) {
        Tile const& t = tile(i);
        if (t.kind == Kind::gemv || layer.act_bits == 16) continue;
        // A split plan has at most blocks_wanted blocks, and at most kMostSplits per tile.
        size_t const tiles = size_t(divide_up(m, 16 * t.row_blocks)) * divide_up(p.column_blocks, t.column_blocks);
        size_t const blocks = std::min<size_t>(blocks_wanted(device), kMostSplits * tiles);
        partial = std::max(partial, blocks * t.row_blocks * 16 * t.column_blocks * 64 * 4);
    }
    if (partial > 0) total += aligned(partial) + aligned(4 * size_t(blocks_wanted(device)));
    return std::max<size_t>(total, 256);
}

}  // namespace svdq
