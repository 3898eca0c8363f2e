// The multiplication for many rows: tiles of both operands pass through stages of shared memory.
//
// Both come in fragment order, so copies are contiguous, a lane reads its share with 16-byte loads, and no bank is asked
// twice: there is nothing to swizzle and no ldmatrix.
#pragma once
#include "epilogue.cuh"
#include "split.cuh"
#include "step.cuh"

namespace staged {

using step::Codes;

template <class T, Codes codes, int kWarpsM, int kWarpsN, int kBlocks, int kAskedStages> struct Kernel {
    static constexpr int kThreads = 32 * kWarpsM * kWarpsN;
    static constexpr int kRowBlocks = kWarpsM * kBlocks;               // of the tile
    static constexpr int kFragment = 32 * step::fragment_loads<codes>;  // 16-byte words per block of rows and step

    // 16-byte words of one stage, in this order.
    static constexpr int kCodes = kRowBlocks * kFragment;
    static constexpr int kWeights = kWarpsN * 128;
    static constexpr int kRowScales = kRowBlocks * 2;
    static constexpr int kColumnScales = kWarpsN * 8;
    static constexpr int kWords = kCodes + kWeights + kRowScales + kColumnScales;
    static constexpr int kFitting = 48 * 1024 / (16 * kWords);
    static constexpr int kStages = kAskedStages < kFitting ? kAskedStages : kFitting;
    static_assert(kStages >= 2, "two stages of this tile exceed 48 KiB");

    // Starts the copies of step k. Rows are padded to whole tiles. Columns are not: a tile that reaches beyond them reads
    // its first block again and stores nothing of it. Offsets are in 16-byte words, and worked out anew at every step:
    // kept, they would be the three registers too many.
    static SVDQ_DEVICE void copy(uint4* stage, MultiplyParams const& p, int k) {
        constexpr int kCodeCopies = kCodes / kThreads, kWeightCopies = kWeights / kThreads;
        static_assert(kCodes % kThreads == 0 && kWeights % kThreads == 0 && kRowScales + kColumnScales <= kThreads);
        static_assert(kThreads % kFragment == 0 && kThreads % 128 == 0 && kWarpsN <= 2);
        uint32_t const t = ptx::opaque(threadIdx.x);
        uint32_t const row_block0 = blockIdx.x * kRowBlocks, column_block0 = blockIdx.y * kWarpsN;
        bool const whole = column_block0 + kWarpsN <= static_cast<uint32_t>(p.column_blocks);

        uint32_t const codes_at = (row_block0 + t / kFragment) * p.steps * kFragment + t % kFragment + k * kFragment;
        SVDQ_UNROLL
        for (int c = 0; c < kCodeCopies; ++c)
            ptx::cp_async16(stage + c * kThreads + t, static_cast<uint4 const*>(p.codes) + (codes_at + c * p.steps * kThreads));

        uint32_t const weights_at = (column_block0 + (whole ? t / 128 : 0)) * p.steps * 128 + t % 128 + k * 128;
        SVDQ_UNROLL
        for (int w = 0; w < kWeightCopies; ++w)
            ptx::cp_async16(stage + kCodes + w * kThreads + t,
                            static_cast<uint4 const*>(p.qweight) + (weights_at + (whole ? w * p.steps * kThreads : 0)));

        if (t >= kRowScales + kColumnScales) return;
        uint32_t const group = k >> p.group_shift;
        uint32_t const c = t - kRowScales;
        ptx::cp_async16(stage + kCodes + kWeights + t,
                        t < kRowScales ? static_cast<uint4 const*>(p.scales) + (row_block0 * 2 + t + group * (2 * p.row_blocks))
                                       : static_cast<uint4 const*>(p.wscale) +
                                             ((column_block0 + (whole ? c / 8 : 0)) * 8 + c % 8 + group * (8 * p.column_blocks)));
    }

    static SVDQ_DEVICE void multiply(float (&sums)[kBlocks][8][4], uint4 const* stage) {
        uint32_t const t = ptx::opaque(threadIdx.x), lane = t % 32, warp_m = t / 32 % kWarpsM, warp_n = t / 32 / kWarpsM;
        step::Activations<codes> a[kBlocks];
        float row_scales[kBlocks][2];
        uint16_t const* const scales_of_rows = reinterpret_cast<uint16_t const*>(stage + kCodes + kWeights);
        SVDQ_UNROLL
        for (int b = 0; b < kBlocks; ++b) {
            uint32_t const block = warp_m * kBlocks + b;
            SVDQ_UNROLL
            for (int h = 0; h < step::fragment_loads<codes>; ++h) a[b].words[h] = stage[block * kFragment + h * 32 + lane];
            SVDQ_UNROLL
            for (int i = 0; i < 2; ++i)
                row_scales[b][i] = T::low(scales_of_rows[block * 16 + 8 * i + lane / 4]) * step::kScaleFactor<codes>;
        }
        uint4 const* const weights = stage + kCodes + warp_n * 128 + lane;
        uint4 const* const scales = stage + kCodes + kWeights + kRowScales + warp_n * 8 + 2 * (lane % 4);
        SVDQ_UNROLL
        for (int half = 0; half < 2; ++half) {
            uint4 const scale = scales[half];
            SVDQ_UNROLL
            for (int q = 2 * half; q < 2 * half + 2; ++q)
                step::quarter<T, codes, kBlocks>(sums, q, a, row_scales, weights[q * 32], scale);
        }
    }

    // Grid: tiles of rows × tiles of columns × splits of K. Rows come first: blocks in flight then share weights.
    static SVDQ_DEVICE void run(MultiplyParams const& p) {
        __shared__ uint4 stages[kStages][kWords];
        int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int const warp_m = warp % kWarpsM, warp_n = warp / kWarpsM;
        int const row_block0 = blockIdx.x * kRowBlocks, column_block0 = blockIdx.y * kWarpsN;
        int const begin = blockIdx.z * p.steps_per_split;
        int const end = begin + p.steps_per_split < p.steps ? begin + p.steps_per_split : p.steps;

        SVDQ_UNROLL
        for (int s = 0; s < kStages - 1; ++s) {
            if (begin + s < end) copy(stages[s], p, begin + s);
            ptx::cp_async_commit();  // empty groups too: the count of groups is what is waited for
        }
        float sums[kBlocks][8][4] = {};
        for (int k = begin; k < end; ++k) {
            ptx::cp_async_wait<kStages - 2>();
            __syncthreads();  // the copies of step k are visible; the stage of step k - 1 is free
            int const ahead = k + kStages - 1;
            if (ahead < end) copy(stages[static_cast<uint32_t>(ahead - begin) % kStages], p, ahead);
            ptx::cp_async_commit();
            multiply(sums, stages[static_cast<uint32_t>(k - begin) % kStages]);
        }

        if (gridDim.z > 1) {
            int const tile = blockIdx.y * gridDim.x + blockIdx.x;
            if (!split::combine<kBlocks * 32, kThreads>(&sums[0][0][0], p.partial, p.counters, tile, gridDim.z, blockIdx.z)) return;
        }
        int const column_block = column_block0 + warp_n;
        if (column_block >= p.column_blocks) return;
        if (p.rank > 0) epilogue::branch<T, kBlocks, 8>(sums, p, row_block0 + warp_m * kBlocks, column_block, 0, lane);
        SVDQ_UNROLL
        for (int b = 0; b < kBlocks; ++b)
            epilogue::store<T, 8>(sums[b], p, row_block0 + warp_m * kBlocks + b, column_block, 0, lane);
    }
};

}  // namespace staged
