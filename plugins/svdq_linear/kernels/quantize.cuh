// x → smoothing, codes and scales per group, and x·down, in one pass over x.
//
// A warp takes 16 rows and walks along K. Lane l holds, of each 64 channels, the two octets 8p.. and 32 + 8p.. (p = l % 4)
// of rows l/4 and l/4 + 8: the elements that it owns in the A operand of the 4-bit multiplication, and, pair by pair, in
// that of x·down. So nothing is exchanged but the group's maximum, among four lanes.
#pragma once
#include "number.cuh"
#include "params.h"

namespace quantize {

constexpr int kWarps = 4;

enum class Store { none, nibbles, bytes };

// Words of x: [row of two][octet of two], four words each.
struct Rows {
    uint4 octet[2][2];
};

SVDQ_DEVICE uint4 octet_at(uint16_t const* row, int channel, int k, bool vector_loads) {
    if (vector_loads && channel + 8 <= k) return *reinterpret_cast<uint4 const*>(row + channel);
    uint32_t words[4] = {0, 0, 0, 0};
    SVDQ_UNROLL
    for (int i = 0; i < 8; ++i)
        if (channel + i < k) words[i / 2] |= static_cast<uint32_t>(row[channel + i]) << (16 * (i % 2));
    return uint4{words[0], words[1], words[2], words[3]};
}

SVDQ_DEVICE Rows load(QuantizeParams const& p, int row_block, int step, int lane) {
    Rows rows;
    SVDQ_UNROLL
    for (int i = 0; i < 2; ++i) {
        int const row = row_block * 16 + lane / 4 + 8 * i;
        SVDQ_UNROLL
        for (int h = 0; h < 2; ++h) {
            int const channel = step * 64 + 32 * h + 8 * (lane % 4);
            rows.octet[i][h] = row < p.m ? octet_at(static_cast<uint16_t const*>(p.x) + static_cast<int64_t>(row) * p.k,
                                                    channel, p.k, p.vector_loads)
                                         : zero4();
        }
    }
    return rows;
}

// x̂ of one row: 16 numbers, octet by octet. inv_smooth is 0 in the padding behind k; x there is 0, but x + shift is not.
template <class T> SVDQ_DEVICE void smooth(float (&xs)[16], uint4 const (&octet)[2], uint4 const (&inv)[2], float shift) {
    SVDQ_UNROLL
    for (int h = 0; h < 2; ++h) {
        SVDQ_UNROLL
        for (int i = 0; i < 4; ++i) {
            uint32_t const x = word_of(octet[h], i), s = word_of(inv[h], i);
            xs[8 * h + 2 * i] = (T::low(x) + shift) * T::low(s);
            xs[8 * h + 2 * i + 1] = (T::high(x) + shift) * T::high(s);
        }
    }
}

// Of the group's numbers in this lane: largest |x̂| as bits (NaN and infinity above all numbers), and largest x̂ or 0.
struct Peak {
    uint32_t magnitude = 0;
    float positive = 0;
};

SVDQ_DEVICE void include(Peak& peak, float const (&xs)[16]) {
    SVDQ_UNROLL
    for (int i = 0; i < 16; ++i) {
        uint32_t const bits = __float_as_uint(xs[i]) & 0x7fffffffu;
        peak.magnitude = bits > peak.magnitude ? bits : peak.magnitude;
        peak.positive = fmaxf(peak.positive, xs[i]);
    }
}

// Over the four lanes that share a row.
SVDQ_DEVICE void combine(Peak& peak) {
    SVDQ_UNROLL
    for (int distance = 1; distance < 4; distance *= 2) {
        uint32_t const bits = __shfl_xor_sync(0xffffffffu, peak.magnitude, distance);
        peak.magnitude = bits > peak.magnitude ? bits : peak.magnitude;
        peak.positive = fmaxf(peak.positive, __shfl_xor_sync(0xffffffffu, peak.positive, distance));
    }
}

// The scale as T holds it: low half of the word, NaN where the group is not finite.
template <class T> SVDQ_DEVICE uint32_t scale_of(Peak const& peak, QuantizeParams const& p) {
    bool const finite = peak.magnitude < 0x7f800000u;
    float const largest = p.is_signed ? __uint_as_float(peak.magnitude) : peak.positive;
    return T::pack(finite ? largest / p.qmax : __uint_as_float(0x7fc00000u), 0.0f) & 0xffffu;
}

// clamp(rint(x̂ / s)) with the quotient of IEEE division. The product with 1/s is at most 2 ulps off, so it rounds to the
// same integer unless it lies that near to a tie; only then is it divided. 255 has ulps of 2^-16: 2^-14 is far enough.
SVDQ_DEVICE void codes_of(int32_t (&codes)[16], float const (&xs)[16], float scale, QuantizeParams const& p) {
    float const lowest = p.is_signed ? -p.qmax : 0.0f;
    bool const usable = scale > 0.0f && scale < 3.0e38f;  // not 0, NaN or infinite
    float const inverse = 1.0f / scale;
    bool divide = scale < 1.0e-30f;  // 1/s could overflow
    SVDQ_UNROLL
    for (int i = 0; i < 16; ++i) {
        float const product = xs[i] * inverse, nearest = rintf(product);
        divide = divide || fabsf(product - nearest) > 0.5f - 0x1p-14f;
        codes[i] = usable ? static_cast<int32_t>(fminf(fmaxf(nearest, lowest), p.qmax)) : 0;
    }
    if (divide && usable) {
        SVDQ_UNROLL
        for (int i = 0; i < 16; ++i) codes[i] = static_cast<int32_t>(fminf(fmaxf(rintf(xs[i] / scale), lowest), p.qmax));
    }
}

// The lane's share of the A fragments of one step: rows l/4 and l/4 + 8.
SVDQ_DEVICE void store_nibbles(QuantizeParams const& p, int row_block, int step, int lane, int32_t const (&codes)[2][16]) {
    uint32_t words[4] = {0, 0, 0, 0};
    SVDQ_UNROLL
    for (int w = 0; w < 4; ++w) {
        SVDQ_UNROLL
        for (int i = 0; i < 8; ++i) words[w] |= (static_cast<uint32_t>(codes[w % 2][8 * (w / 2) + i]) & 15u) << (4 * i);
    }
    int64_t const at = (static_cast<int64_t>(row_block) * p.steps + step) * 32 + lane;
    static_cast<uint4*>(p.codes)[at] = uint4{words[0], words[1], words[2], words[3]};
}

// Bytes: even channels, then odd ones, as the low and high nibbles of the weights come.
SVDQ_DEVICE void store_bytes(QuantizeParams const& p, int row_block, int step, int lane, int32_t const (&codes)[2][16]) {
    SVDQ_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
        uint32_t words[4] = {0, 0, 0, 0};
        SVDQ_UNROLL
        for (int w = 0; w < 4; ++w) {
            SVDQ_UNROLL
            for (int i = 0; i < 4; ++i)
                words[w] |= (static_cast<uint32_t>(codes[w % 2][8 * (w / 2) + 2 * i + odd]) & 255u) << (8 * i);
        }
        int64_t const at = ((static_cast<int64_t>(row_block) * p.steps + step) * 2 + odd) * 32 + lane;
        static_cast<uint4*>(p.codes)[at] = uint4{words[0], words[1], words[2], words[3]};
    }
}

// hidden += x·down of one step; `blocks` of 16 ranks from the packed `down`, of which the first is `first_block`.
template <class T, int kBlocks>
SVDQ_DEVICE void branch(float (&hidden)[kBlocks][2][4], Rows const& rows, QuantizeParams const& p, int step, int lane,
                        int first_block, int blocks) {
    uint4 const* down = static_cast<uint4 const*>(p.down) + (static_cast<int64_t>(step) * (p.rank / 16) + first_block) * 128;
    SVDQ_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
        if (b >= blocks) break;
        SVDQ_UNROLL
        for (int t = 0; t < 2; ++t) {
            SVDQ_UNROLL
            for (int h = 0; h < 2; ++h) {
                uint4 const d = down[b * 128 + (2 * t + h) * 32 + lane];
                uint32_t const first[4] = {rows.octet[0][h].x, rows.octet[1][h].x, rows.octet[0][h].y, rows.octet[1][h].y};
                uint32_t const second[4] = {rows.octet[0][h].z, rows.octet[1][h].z, rows.octet[0][h].w, rows.octet[1][h].w};
                T::mma(hidden[b][t], first, d.x, d.y);
                T::mma(hidden[b][t], second, d.z, d.w);
            }
        }
    }
}

// Sum over the block's warps along K, in their order, then the lane's four ranks of two rows.
template <int kBlocks>
SVDQ_DEVICE void store_hidden(float (&hidden)[kBlocks][2][4], QuantizeParams const& p, int row_block, int lane, int warp,
                              int first_block, int blocks) {
    __shared__ float4 others[kWarps - 1][kBlocks * 2][32];
    bool const alone = p.warps_along_k == 1;
    if (!alone && warp > 0) {
        SVDQ_UNROLL
        for (int i = 0; i < kBlocks * 2; ++i) {
            float const(&h)[4] = hidden[i / 2][i % 2];
            others[warp - 1][i][lane] = float4{h[0], h[1], h[2], h[3]};
        }
    }
    if (!alone) __syncthreads();
    if (!alone && warp > 0) return;
    if (row_block * 16 >= p.m) return;
    SVDQ_UNROLL
    for (int i = 0; i < kBlocks * 2; ++i) {
        if (alone) break;
        for (int w = 0; w < kWarps - 1; ++w) {
            float4 const other = others[w][i][lane];
            float(&h)[4] = hidden[i / 2][i % 2];
            h[0] += other.x, h[1] += other.y, h[2] += other.z, h[3] += other.w;
        }
    }
    int64_t const row = static_cast<int64_t>(blockIdx.y) * p.row_blocks * 16 + row_block * 16 + lane / 4;
    SVDQ_UNROLL
    for (int b = 0; b < kBlocks; ++b) {
        if (b >= blocks) break;
        float* const out = p.hidden + row * p.rank + (first_block + b) * 16 + 4 * (lane % 4);
        float const(&left)[4] = hidden[b][0], (&right)[4] = hidden[b][1];
        *reinterpret_cast<float4*>(out) = float4{left[0], left[1], right[0], right[1]};
        *reinterpret_cast<float4*>(out + 8 * static_cast<int64_t>(p.rank)) = float4{left[2], left[3], right[2], right[3]};
    }
}

// Quantises the group that `rows` holds and stores its codes and scales.
template <class T, Store store, int kGroupSteps>
SVDQ_DEVICE void group(QuantizeParams const& p, Rows const (&rows)[kGroupSteps], int row_block, int step, int lane) {
    float xs[kGroupSteps][2][16];
    Peak peak[2];
    SVDQ_UNROLL
    for (int g = 0; g < kGroupSteps; ++g) {
        uint4 const* inv_smooth = static_cast<uint4 const*>(p.inv_smooth) + (step + g) * 8 + lane % 4;
        uint4 const inv[2] = {inv_smooth[0], inv_smooth[4]};
        SVDQ_UNROLL
        for (int i = 0; i < 2; ++i) {
            smooth<T>(xs[g][i], rows[g].octet[i], inv, p.shift);
            include(peak[i], xs[g][i]);
        }
    }
    float scale[2];
    SVDQ_UNROLL
    for (int i = 0; i < 2; ++i) {
        combine(peak[i]);
        uint32_t const bits = scale_of<T>(peak[i], p);
        scale[i] = T::low(bits);
        int64_t const at = static_cast<int64_t>(step / kGroupSteps) * p.row_blocks * 16 + row_block * 16 + lane / 4 + 8 * i;
        if (lane % 4 == 0) static_cast<uint16_t*>(p.scales)[at] = static_cast<uint16_t>(bits);
    }
    SVDQ_UNROLL
    for (int g = 0; g < kGroupSteps; ++g) {
        int32_t codes[2][16];
        SVDQ_UNROLL
        for (int i = 0; i < 2; ++i) codes_of(codes[i], xs[g][i], scale[i], p);
        if constexpr (store == Store::nibbles) store_nibbles(p, row_block, step + g, lane, codes);
        if constexpr (store == Store::bytes) store_bytes(p, row_block, step + g, lane, codes);
    }
}

// Grid: blocks of rows × parts of K × chunks of 16 kBlocks ranks, of which the first also quantises.
template <class T, Store store, int kGroupSteps, int kBlocks> SVDQ_DEVICE void run(QuantizeParams const& p) {
    int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int const warps_along_m = kWarps / p.warps_along_k;
    int const row_block = blockIdx.x * warps_along_m + warp / p.warps_along_k;
    int const part = blockIdx.y * p.warps_along_k + warp % p.warps_along_k;
    if (blockIdx.x + blockIdx.y + blockIdx.z == 0)
        for (int i = threadIdx.x; i < p.counter_count; i += kWarps * 32) p.counters[i] = 0;
    float hidden[kBlocks > 0 ? kBlocks : 1][2][4] = {};
    int const first_block = blockIdx.z * kBlocks;
    int const blocks = p.rank / 16 - first_block < kBlocks ? p.rank / 16 - first_block : kBlocks;
    int const begin = part * p.steps_per_warp;
    int const end = begin + p.steps_per_warp < p.steps ? begin + p.steps_per_warp : p.steps;
    if (row_block * 16 < p.m && begin < end) {
        Rows next[kGroupSteps];
        SVDQ_UNROLL
        for (int g = 0; g < kGroupSteps; ++g) next[g] = load(p, row_block, begin + g, lane);
        for (int step = begin; step < end; step += kGroupSteps) {
            Rows rows[kGroupSteps];
            SVDQ_UNROLL
            for (int g = 0; g < kGroupSteps; ++g) rows[g] = next[g];
            if (step + kGroupSteps < end) {  // in flight while this group is worked on
                SVDQ_UNROLL
                for (int g = 0; g < kGroupSteps; ++g) next[g] = load(p, row_block, step + kGroupSteps + g, lane);
            }
            if constexpr (kBlocks > 0) {
                SVDQ_UNROLL
                for (int g = 0; g < kGroupSteps; ++g)
                    branch<T, kBlocks>(hidden, rows[g], p, step + g, lane, first_block, blocks);
            }
            if constexpr (store != Store::none)
                if (blockIdx.z == 0) group<T, store, kGroupSteps>(p, rows, row_block, step, lane);
        }
    }
    if constexpr (kBlocks > 0) store_hidden<kBlocks>(hidden, p, row_block, lane, warp, first_block, blocks);
}

}  // namespace quantize
