// Split-K: the blocks of a tile leave their sums in memory; the last one to arrive adds them in the splits' order, so
// that repeated runs give the same bits whoever is last.
#pragma once
#include "ptx.cuh"

namespace split {

// `sums` of every thread becomes the total. False in every thread of a block that was not the last: it is done.
// partial: [tiles, splits, kCount / 4, kThreads] float4. kCount is a multiple of 4.
template <int kCount, int kThreads>
SVDQ_DEVICE bool combine(float* sums, float* partial, uint32_t* counters, int tile, int splits, int split) {
    __shared__ bool last;
    float4* const own = reinterpret_cast<float4*>(partial) + static_cast<int64_t>(tile) * splits * (kCount / 4) * kThreads + threadIdx.x;
    SVDQ_UNROLL
    for (int i = 0; i < kCount / 4; ++i)
        own[(split * (kCount / 4) + i) * kThreads] = float4{sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(counters + tile, 1u) == static_cast<uint32_t>(splits - 1);
    __syncthreads();
    if (!last) return false;
    __threadfence();
    SVDQ_UNROLL
    for (int i = 0; i < kCount / 4; ++i) {
        float4 total = __ldcg(own + i * kThreads);
        SVDQ_ROLLED
        for (int s = 1; s < splits; ++s) {
            float4 const part = __ldcg(own + (s * (kCount / 4) + i) * kThreads);
            total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
        }
        sums[4 * i] = total.x, sums[4 * i + 1] = total.y, sums[4 * i + 2] = total.z, sums[4 * i + 3] = total.w;
    }
    return true;
}

}  // namespace split
