// The multiplication for few rows, where reading the weights is all that costs: fragments go from global memory to
// registers, every byte of weights once; the block's warps share out K.
#pragma once
#include "epilogue.cuh"
#include "split.cuh"
#include "step.cuh"

namespace direct {

using step::Codes;

template <class T, Codes codes, int kBlocks, int kWarps> struct Kernel {
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kTiles = 8 / kWarps > 0 ? 8 / kWarps : 1;  // column tiles that a warp finishes
    static_assert(kWarps * kTiles == 8);

    struct Step {
        step::Activations<codes> a[kBlocks];
        float row_scales[kBlocks][2];
        uint4 weights[4], scales[2];
    };

    static SVDQ_DEVICE void load(Step& s, MultiplyParams const& p, int row_block0, int column_block, int k, int lane) {
        uint4 const* weights = static_cast<uint4 const*>(p.qweight) + (static_cast<int64_t>(column_block) * p.steps + k) * 128 + lane;
        SVDQ_UNROLL
        for (int q = 0; q < 4; ++q) s.weights[q] = weights[q * 32];
        int const group = k >> p.group_shift;
        uint4 const* scales = static_cast<uint4 const*>(p.wscale) + (static_cast<int64_t>(group) * p.column_blocks + column_block) * 8;
        SVDQ_UNROLL
        for (int i = 0; i < 2; ++i) s.scales[i] = scales[2 * (lane % 4) + i];
        SVDQ_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
            constexpr int kFragment = 32 * step::fragment_loads<codes>;
            uint4 const* a = static_cast<uint4 const*>(p.codes) + (static_cast<int64_t>(row_block0 + b) * p.steps + k) * kFragment + lane;
            SVDQ_UNROLL
            for (int h = 0; h < step::fragment_loads<codes>; ++h) s.a[b].words[h] = a[h * 32];
            SVDQ_UNROLL
            for (int i = 0; i < 2; ++i) {
                int64_t const row = static_cast<int64_t>(group * p.row_blocks + row_block0 + b) * 16 + lane / 4 + 8 * i;
                s.row_scales[b][i] = number<T>(p.scales, row) * step::kScaleFactor<codes>;
            }
        }
    }

    // Grid: tiles of rows × blocks of 64 columns × splits of K.
    static SVDQ_DEVICE void run(MultiplyParams const& p) {
        __shared__ float4 shared[kWarps][kBlocks * 8][32];
        int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int const row_block0 = blockIdx.x * kBlocks, column_block = blockIdx.y;
        int const begin = blockIdx.z * p.steps_per_split;
        int const end = begin + p.steps_per_split < p.steps ? begin + p.steps_per_split : p.steps;
        float sums[kBlocks][8][4] = {};
        Step current, next;
        int k = begin + warp;
        if (k < end) load(current, p, row_block0, column_block, k, lane);
        for (; k < end; k += kWarps) {
            if (k + kWarps < end) load(next, p, row_block0, column_block, k + kWarps, lane);  // in flight meanwhile
            SVDQ_UNROLL
            for (int q = 0; q < 4; ++q)
                step::quarter<T, codes, kBlocks>(sums, q, current.a, current.row_scales, current.weights[q], current.scales[q / 2]);
            current = next;
        }

        // Every warp finishes kTiles of the eight column tiles, adding the warps' sums in their order.
        SVDQ_UNROLL
        for (int i = 0; i < kBlocks * 8; ++i) {
            float const(&s)[4] = sums[i / 8][i % 8];
            shared[warp][i][lane] = float4{s[0], s[1], s[2], s[3]};
        }
        __syncthreads();
        int const first = warp * kTiles;
        float mine[kBlocks][kTiles][4] = {};
        SVDQ_UNROLL
        for (int i = 0; i < kBlocks * kTiles; ++i) {
            float(&s)[4] = mine[i / kTiles][i % kTiles];
            SVDQ_UNROLL
            for (int w = 0; w < kWarps; ++w) {
                float4 const part = shared[w][i / kTiles * 8 + first + i % kTiles][lane];
                s[0] += part.x, s[1] += part.y, s[2] += part.z, s[3] += part.w;
            }
        }
        if (gridDim.z > 1) {
            int const tile = blockIdx.y * gridDim.x + blockIdx.x;
            if (!split::combine<kBlocks * kTiles * 4, kThreads>(&mine[0][0][0], p.partial, p.counters, tile, gridDim.z, blockIdx.z))
                return;
        }
        if (p.rank > 0) branch(mine, p, row_block0, column_block, first, lane);
        SVDQ_UNROLL
        for (int b = 0; b < kBlocks; ++b)
            epilogue::store<T, kTiles>(mine[b], p, row_block0 + b, column_block, first, lane);
    }

    // epilogue::branch wants whole pairs of tiles, as `up` is packed; a warp with one takes its half.
    static SVDQ_DEVICE void branch(float (&mine)[kBlocks][kTiles][4], MultiplyParams const& p, int row_block0,
                                   int column_block, int first, int lane) {
        if constexpr (kTiles % 2 == 0) {
            epilogue::branch<T, kBlocks, kTiles>(mine, p, row_block0, column_block, first, lane);
        } else {
            float pair[kBlocks][2][4];
            SVDQ_UNROLL
            for (int b = 0; b < kBlocks; ++b)
                SVDQ_UNROLL
                for (int i = 0; i < 4; ++i) pair[b][0][i] = pair[b][1][i] = mine[b][0][i];
            epilogue::branch<T, kBlocks, 2>(pair, p, row_block0, column_block, first & ~1, lane);
            SVDQ_UNROLL
            for (int b = 0; b < kBlocks; ++b)
                SVDQ_UNROLL
                for (int i = 0; i < 4; ++i) mine[b][0][i] = first % 2 ? pair[b][1][i] : pair[b][0][i];
        }
    }
};

}  // namespace direct
