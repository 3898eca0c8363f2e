// Weight-only layers: 4-bit weights, x smoothed but not quantised, so float32 on the CUDA cores. Made for the one to
// six rows of AdaLN modulations, where reading the weights is what costs; more rows are taken kRows at a time.
#pragma once
#include "epilogue.cuh"
#include "quantize.cuh"

namespace gemv {

// Code i of a word whose codes have been made weight + 8: behind the exponent of 2^23 that is 8388616 + weight.
SVDQ_DEVICE float weight_of(uint32_t word, int i) {
    return __uint_as_float(((word >> (4 * i)) & 15u) | 0x4b000000u) - 8388616.0f;
}
constexpr uint32_t kPlusEight = 0x88888888u;  // flipping the sign bit of two's complement adds half the range

template <class T, int kRows, int kWarps> struct Kernel {
    static constexpr int kThreads = 32 * kWarps;

    // Lane l has columns 16(r / 2) + 2j + r % 2, r = l / 4, for tiles j of eight, and 16 of every 64 channels.
    static SVDQ_DEVICE void one_step(float (&sums)[kRows][8], GemvParams const& p, int row0, int column_block, int k, int lane) {
        uint4 const* words = static_cast<uint4 const*>(p.qweight) + (static_cast<int64_t>(column_block) * p.steps + k) * 128 + lane;
        uint4 weights[4];
        SVDQ_UNROLL
        for (int q = 0; q < 4; ++q) weights[q] = words[q * 32];
        uint4 const* inv_smooth = static_cast<uint4 const*>(p.inv_smooth) + k * 8 + lane % 4;
        uint4 const inv[2] = {inv_smooth[0], inv_smooth[4]};
        float xs[kRows][16];
        SVDQ_UNROLL
        for (int i = 0; i < kRows; ++i) {
            uint4 octets[2] = {zero4(), zero4()};
            if (row0 + i < p.m) {
                uint16_t const* row = static_cast<uint16_t const*>(p.x) + static_cast<int64_t>(row0 + i) * p.k;
                SVDQ_UNROLL
                for (int h = 0; h < 2; ++h)
                    octets[h] = quantize::octet_at(row, k * 64 + 32 * h + 8 * (lane % 4), p.k, p.vector_loads);
            }
            quantize::smooth<T>(xs[i], octets, inv, p.shift);
        }
        int64_t const scales = static_cast<int64_t>(k >> p.group_shift) * p.column_blocks * 64 + column_block * 64 + column_of(lane);
        SVDQ_UNROLL
        for (int j = 0; j < 8; ++j) {
            uint32_t const low = (j % 2 ? weights[j / 2].z : weights[j / 2].x) ^ kPlusEight;
            uint32_t const high = (j % 2 ? weights[j / 2].w : weights[j / 2].y) ^ kPlusEight;
            float dots[kRows] = {};
            SVDQ_UNROLL
            for (int c = 0; c < 16; ++c) {
                float const w = weight_of(c < 8 ? low : high, c % 8);
                SVDQ_UNROLL
                for (int i = 0; i < kRows; ++i) dots[i] = fmaf(xs[i][c], w, dots[i]);
            }
            float const scale = number<T>(p.wscale, scales + 2 * j);
            SVDQ_UNROLL
            for (int i = 0; i < kRows; ++i) sums[i][j] = fmaf(dots[i], scale, sums[i][j]);
        }
    }

    static SVDQ_DEVICE int column_of(int lane) { return 16 * (lane / 8) + lane / 4 % 2; }

    // T(x·down)·up of one element. `up` is packed: rank 4p + i of column 16c + 4q + 2t + e is half (t, i) of lane
    // 4(2c + e) + p in load q.
    static SVDQ_DEVICE float branch(GemvParams const& p, int row, int column) {
        int const c = column % 64 / 16, q = column % 16 / 4, t = column % 4 / 2, e = column % 2;
        uint32_t const* up = static_cast<uint32_t const*>(p.up) + static_cast<int64_t>(column / 64) * (p.rank / 16) * 512;
        float sum = 0;
        for (int r = 0; r < p.rank; r += 2) {
            float low = 0, high = 0;
            for (int split = 0; split < p.hidden_splits; ++split) {
                float const* hidden = p.hidden + (static_cast<int64_t>(split) * p.row_blocks * 16 + row) * p.rank + r;
                low += hidden[0], high += hidden[1];
            }
            uint32_t const h = T::pack(low, high);
            int const lane = 4 * (2 * c + e) + r % 16 / 4;
            uint32_t const u = up[(r / 16) * 512 + (q * 32 + lane) * 4 + t * 2 + r % 4 / 2];
            sum = fmaf(T::low(h), T::low(u), sum);
            sum = fmaf(T::high(h), T::high(u), sum);
        }
        return sum;
    }

    // Grid: chunks of kRows rows × blocks of 64 columns.
    static SVDQ_DEVICE void run(GemvParams const& p) {
        __shared__ float shared[kWarps][kRows][64];
        int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int const row0 = blockIdx.x * kRows, column_block = blockIdx.y;
        float sums[kRows][8] = {};
        for (int k = warp; k < p.steps; k += kWarps) one_step(sums, p, row0, column_block, k, lane);
        SVDQ_UNROLL
        for (int i = 0; i < kRows; ++i) {
            SVDQ_UNROLL
            for (int j = 0; j < 8; ++j) {
                float sum = sums[i][j];  // over the four lanes that share a column
                sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                if (lane % 4 == 0) shared[warp][i][column_of(lane) + 2 * j] = sum;
            }
        }
        __syncthreads();
        for (int e = threadIdx.x; e < kRows * 64; e += kThreads) {
            int const row = row0 + e / 64, column = column_block * 64 + e % 64;
            if (row >= p.m || column >= p.n) continue;
            float sum = 0;
            for (int w = 0; w < kWarps; ++w) sum += shared[w][e / 64][e % 64];
            if (p.rank > 0) sum += branch(p, row, column);
            float const y = epilogue::activate(sum + number<T>(p.bias, column), p.activation);
            static_cast<uint16_t*>(p.y)[static_cast<int64_t>(row) * p.n + column] = static_cast<uint16_t>(T::pack(y, 0.0f));
        }
    }
};

}  // namespace gemv
