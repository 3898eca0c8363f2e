// Every plan covers every row, column and channel once, and fits into the bound that TensorRT is given.
#include <cstdio>
#include <random>

#include "plan.h"

using namespace svdq;

int main() {
    std::mt19937 random(1);
    auto const draw = [&random](int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random); };
    long plans = 0;
    for (int i = 0; i < 20000; ++i) {
        int const bits[] = {4, 8, 16};
        SvdqLayer layer{};
        layer.n = int32_t(draw(1, i % 2 ? 300 : 20000)), layer.k = int32_t(draw(1, i % 3 ? 400 : 20000));
        layer.rank = int32_t(16 * draw(0, i % 5 ? 8 : 64)), layer.group_size = draw(0, 1) ? 64 : 128;
        layer.act_bits = bits[draw(0, 2)], layer.act_signed = 1, layer.dtype = SVDQ_FLOAT16;
        int64_t const most = draw(1, i % 2 ? 600 : 10000), m = draw(1, most);
        Device const device{int(draw(1, kLargestDevice.processors)), draw(0, 1) == 1};
        size_t const bound = workspace_bound(layer, most, kLargestDevice);
        bool any = false;
        for (int t = 0; t < tile_count(); ++t) {
            if (!tile_is_valid(layer, m, t)) continue;
            any = true, ++plans;
            Plan const p = plan(layer, m, t, device);
            Tile const& row = tile(t);
            int64_t const rows = int64_t(p.multiply_grid.x) * row.row_blocks * (row.kind == Kind::gemv ? 1 : 16);
            bool const tiles = rows >= m && rows <= std::max<int64_t>(16 * int64_t(p.row_blocks), m + 7) &&
                               int64_t(p.multiply_grid.y) * row.column_blocks * 64 >= layer.n;
            bool const splits = int64_t(p.steps_per_split) * p.splits >= p.steps && int64_t(p.steps_per_split) * (p.splits - 1) < p.steps;
            int64_t const parts = int64_t(p.hidden_splits) * p.warps_along_k;
            int64_t const row_blocks = int64_t(p.quantize_grid.x) * (4 / p.warps_along_k);
            bool const quantize = parts * p.steps_per_warp >= p.steps && p.steps_per_warp % (layer.group_size / 64) == 0 &&
                                  row_blocks * 16 >= m && (layer.rank == 0 || int64_t(p.quantize_grid.z) * p.rank_chunk >= layer.rank);
            bool const grid = p.multiply_grid.y <= 65535 && p.quantize_grid.y <= 65535 && p.multiply_grid.z <= 65535;
            if (!tiles || !splits || !quantize || !grid || p.workspace.bytes > bound) {
                std::printf("n %d k %d rank %d group %d bits %d m %ld of %ld tile %s processors %d: %d%d%d%d workspace %zu of %zu\n",
                            layer.n, layer.k, layer.rank, layer.group_size, layer.act_bits, long(m), long(most), row.name,
                            device.processors, tiles, splits, quantize, grid, p.workspace.bytes, bound);
                return 1;
            }
        }
        if (!any || !tile_is_valid(layer, m, default_tile(layer, m))) return std::printf("no tile for m = %ld\n", long(m)), 1;
    }
    return plans > 50000 ? 0 : (std::printf("only %ld plans\n", plans), 1);
}
