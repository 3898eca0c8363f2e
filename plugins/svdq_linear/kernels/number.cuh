// The 16-bit types T of the contract. Words hold two numbers, the first in the low half.
#pragma once
#include "ptx.cuh"

struct Float16 {
    static SVDQ_DEVICE float low(uint32_t word) { return ptx::float_of_f16(static_cast<uint16_t>(word)); }
    static SVDQ_DEVICE float high(uint32_t word) { return ptx::float_of_f16(static_cast<uint16_t>(word >> 16)); }
    static SVDQ_DEVICE uint32_t pack(float low, float high) { return ptx::f16x2(low, high); }
    static SVDQ_DEVICE void mma(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
        ptx::mma_m16n8k16_f16(d, a, b0, b1);
    }
};

struct Bfloat16 {
    static SVDQ_DEVICE float low(uint32_t word) { return __uint_as_float(word << 16); }
    static SVDQ_DEVICE float high(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }
    static SVDQ_DEVICE uint32_t pack(float low, float high) { return ptx::bf16x2(low, high); }
    static SVDQ_DEVICE void mma(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
        ptx::mma_m16n8k16_bf16(d, a, b0, b1);
    }
};

template <class T> SVDQ_DEVICE float number(void const* values, int64_t i) {
    return T::low(static_cast<uint16_t const*>(values)[i]);
}

// Eight neighbouring numbers: words[offset..offset + 4).
SVDQ_DEVICE uint4 zero4() { return uint4{0, 0, 0, 0}; }
SVDQ_DEVICE uint32_t word_of(uint4 const& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }
