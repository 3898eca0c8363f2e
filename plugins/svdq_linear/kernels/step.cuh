// One step of the multiplication: 64 channels, 64 columns, 16 rows times kBlocks, for one warp.
#pragma once
#include "number.cuh"
#include "params.h"

namespace step {

using ptx::Codes;

// Integers around 12582912 = 1.5·2^23 have their own bits as float32 bits less a constant: an accumulator that starts at
// 0x4b400000 is, read as float, 12582912 + dot, without a conversion (|dot| < 2^22).
constexpr int32_t kMagic = 0x4b400000;
constexpr float kMagicFloat = 12582912.0f;

template <Codes codes> constexpr bool wide = codes == Codes::s8 || codes == Codes::u8;

// Weights that are widened to bytes stay in the upper nibble, 16 times too large; so the activation's scale is made
// 1/16 of itself, which is exact. |dot| is then at most 64·255·7·16 < 2^22.
template <Codes codes> constexpr float kScaleFactor = wide<codes> ? 0x1p-4f : 1.0f;

// The A operand of 16 rows: 16 bytes per lane, or twice that: even and odd channels.
template <Codes codes> constexpr int fragment_loads = wide<codes> ? 2 : 1;
template <Codes codes> struct Activations {
    uint4 words[fragment_loads<codes>];
};

SVDQ_DEVICE uint32_t even_nibbles(uint32_t word) { return (word << 4) & 0xf0f0f0f0u; }
SVDQ_DEVICE uint32_t odd_nibbles(uint32_t word) { return word & 0xf0f0f0f0u; }

// 12582912 + dot, as bits of float32; times 16 where the weights are widened. `low` and `high` are a lane's weights of a
// column: octets 8p and 32 + 8p.
template <Codes codes>
SVDQ_DEVICE void dot(int32_t (&d)[4], Activations<codes> const& a, uint32_t low, uint32_t high) {
    uint32_t const first[4] = {a.words[0].x, a.words[0].y, a.words[0].z, a.words[0].w};
    if constexpr (wide<codes>) {
        uint32_t const second[4] = {a.words[1].x, a.words[1].y, a.words[1].z, a.words[1].w};
        int32_t const magic[4] = {kMagic, kMagic, kMagic, kMagic};
        int32_t even[4];
        ptx::mma_m16n8k32<codes>(even, first, even_nibbles(low), even_nibbles(high), magic);
        ptx::mma_m16n8k32<codes>(d, second, odd_nibbles(low), odd_nibbles(high), even);
    } else {
        ptx::mma_m16n8k64<codes>(d, first, low, high, kMagic);
    }
}

// The scales of the two columns of tile j of eight, and what cancels the magic number: -12582912·scale is exact.
template <class T> struct ColumnScales {
    float scale[2], offset[2];
    SVDQ_DEVICE explicit ColumnScales(uint32_t word) {
        scale[0] = T::low(word), scale[1] = T::high(word);
        offset[0] = -kMagicFloat * scale[0], offset[1] = -kMagicFloat * scale[1];
    }
};

// sum += s_x·(s_w·dot): s_w·dot is one exact-input FMA, rounded once; then one FMA per element.
template <class T>
SVDQ_DEVICE void accumulate(float (&sum)[4], int32_t const (&d)[4], ColumnScales<T> const& columns, float const (&rows)[2]) {
    SVDQ_UNROLL
    for (int i = 0; i < 4; ++i) {
        float const product = fmaf(__int_as_float(d[i]), columns.scale[i % 2], columns.offset[i % 2]);
        sum[i] = fmaf(product, rows[i / 2], sum[i]);
    }
}

// sums[block][tile] += one step, for the two of eight column tiles whose words are weights[q]; scales: the lane's eight
// columns that these are two pairs of.
template <class T, Codes codes, int kBlocks>
SVDQ_DEVICE void quarter(float (&sums)[kBlocks][8][4], int q, Activations<codes> const (&a)[kBlocks],
                         float const (&row_scales)[kBlocks][2], uint4 const& weights, uint4 const& scales) {
    SVDQ_UNROLL
    for (int t = 0; t < 2; ++t) {
        ColumnScales<T> const columns(word_of(scales, 2 * (q % 2) + t));
        SVDQ_UNROLL
        for (int block = 0; block < kBlocks; ++block) {
            int32_t d[4];
            dot<codes>(d, a[block], t ? weights.z : weights.x, t ? weights.w : weights.y);
            accumulate<T>(sums[block][2 * q + t], d, columns, row_scales[block]);
        }
    }
}

}  // namespace step
