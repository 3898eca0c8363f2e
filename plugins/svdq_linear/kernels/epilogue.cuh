// What follows the sums: low-rank branch, bias, activation, rounding to T, y.
#pragma once
#include "number.cuh"
#include "params.h"

namespace epilogue {

enum Activation { kNone = 0, kGeluTanh = 1, kSilu = 2 };  // as SvdqActivation in launch.h

// GELU's tanh form is z·sigmoid(2√(2/π)(z + 0.044715 z³)): no cancellation for negative z.
SVDQ_DEVICE float activate(float z, int activation) {
    if (activation == kNone) return z;
    float const argument = activation == kSilu ? z : 1.5957691216057308f * fmaf(0.044715f * z * z, z, z);
    return z / (1.0f + expf(-argument));
}

// Rows l/4 and l/4 + 8 of x·down for 16 ranks, summed over the parts of K and rounded to T: an A operand.
template <class T, class Params>
SVDQ_DEVICE void hidden_fragment(uint32_t (&a)[4], Params const& p, int row_block, int rank_block, int lane) {
    float sums[2][4] = {};
    float const* at = p.hidden + (static_cast<int64_t>(row_block) * 16 + lane / 4) * p.rank + rank_block * 16 + 4 * (lane % 4);
    SVDQ_ROLLED
    for (int split = 0; split < p.hidden_splits; ++split, at += static_cast<int64_t>(p.row_blocks) * 16 * p.rank) {
        SVDQ_UNROLL
        for (int i = 0; i < 2; ++i) {
            float4 const part = *reinterpret_cast<float4 const*>(at + static_cast<int64_t>(8 * i) * p.rank);
            sums[i][0] += part.x, sums[i][1] += part.y, sums[i][2] += part.z, sums[i][3] += part.w;
        }
    }
    a[0] = T::pack(sums[0][0], sums[0][1]), a[1] = T::pack(sums[1][0], sums[1][1]);
    a[2] = T::pack(sums[0][2], sums[0][3]), a[3] = T::pack(sums[1][2], sums[1][3]);
}

// sums += (x·down)·up for column tiles first..first + kTiles of a block of 64 columns; first and kTiles are even.
template <class T, int kBlocks, int kTiles>
SVDQ_DEVICE void branch(float (&sums)[kBlocks][kTiles][4], MultiplyParams const& p, int row_block0, int column_block,
                        int first, int lane) {
    uint4 const* up = static_cast<uint4 const*>(p.up) + static_cast<int64_t>(column_block) * (p.rank / 16) * 128 + lane;
    SVDQ_ROLLED
    for (int rank_block = 0; rank_block < p.rank / 16; ++rank_block, up += 128) {
        uint4 words[kTiles / 2];
        SVDQ_UNROLL
        for (int q = 0; q < kTiles / 2; ++q) words[q] = up[(first / 2 + q) * 32];
        SVDQ_UNROLL
        for (int block = 0; block < kBlocks; ++block) {
            uint32_t a[4];
            hidden_fragment<T>(a, p, row_block0 + block, rank_block, lane);
            SVDQ_UNROLL
            for (int j = 0; j < kTiles; ++j)
                T::mma(sums[block][j], a, j % 2 ? words[j / 2].z : words[j / 2].x, j % 2 ? words[j / 2].w : words[j / 2].y);
        }
    }
}

// Bias, activation and y for column tiles first..first + kTiles of the lane's 16 columns: 2·kTiles neighbours.
template <class T, int kTiles>
SVDQ_DEVICE void store(float const (&sums)[kTiles][4], MultiplyParams const& p, int row_block, int column_block, int first,
                       int lane) {
    int const column = column_block * 64 + 16 * (lane % 4) + 2 * first;
    SVDQ_UNROLL
    for (int i = 0; i < 2; ++i) {
        int const row = row_block * 16 + lane / 4 + 8 * i;
        if (row >= p.m) continue;
        uint16_t* const y = static_cast<uint16_t*>(p.y) + static_cast<int64_t>(row) * p.n + column;
        uint32_t words[kTiles];
        SVDQ_UNROLL
        for (int j = 0; j < kTiles; ++j) {
            uint32_t const bias = static_cast<uint32_t const*>(p.bias)[column / 2 + j];  // padded to whole blocks
            words[j] = T::pack(activate(sums[j][2 * i] + T::low(bias), p.activation),
                               activate(sums[j][2 * i + 1] + T::high(bias), p.activation));
        }
        SVDQ_UNROLL
        for (int v = 0; v < kTiles; v += 4) {
            if (kTiles % 4 == 0 && p.vector_stores && column + 2 * v + 8 <= p.n) {
                *reinterpret_cast<uint4*>(y + 2 * v) = uint4{words[v], words[v + 1], words[v + 2], words[v + 3]};
                continue;
            }
            SVDQ_UNROLL
            for (int j = v; j < v + 4 && j < kTiles; ++j) {
                if (column + 2 * j < p.n) y[2 * j] = static_cast<uint16_t>(words[j]);
                if (column + 2 * j + 1 < p.n) y[2 * j + 1] = static_cast<uint16_t>(words[j] >> 16);
            }
        }
    }
}

}  // namespace epilogue
