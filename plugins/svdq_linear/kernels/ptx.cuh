// The only place with PTX. Every instruction has a twin in ../on_cpu/ptx.h, so that the kernels' own source runs on a CPU.
//
// Fragments (PTX ISA, "Warp-level matrix instructions"), lane l of 32, p = l % 4, r = l / 4:
//   m16n8k64 s4/u4   A reg i: row r + 8(i%2), k = 8p + 32(i/2) + 0..7 (nibbles, low first)   B reg i: column r, k = 8p + 32i + 0..7
//   m16n8k32 s8/u8   A reg i: row r + 8(i%2), k = 4p + 16(i/2) + 0..3                        B reg i: column r, k = 4p + 16i + 0..3
//   m16n8k16 f16     A reg i: row r + 8(i%2), k = 2p + 8(i/2) + 0..1                         B reg i: column r, k = 2p + 8i + 0..1
//   C and D of all   element i: row r + 8(i/2), column 2p + i%2
#pragma once

#ifdef __CUDACC__

#ifdef __CUDACC_RTC__
using int8_t = signed char;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#endif

#define SVDQ_DEVICE __device__ __forceinline__
#define SVDQ_UNROLL _Pragma("unroll")
#define SVDQ_ROLLED _Pragma("unroll 1")  // of a length known at run time, and not worth copies

namespace ptx {

// Types of the activation's codes. s4 and u4 have native instructions on compute capability 8.x only.
enum class Codes { s4, u4, s8, u8 };

// d = a·b + c over 64 channels; c is the same number everywhere.
template <Codes codes>
SVDQ_DEVICE void mma_m16n8k64(int32_t (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, int32_t c) {
    static_assert(codes == Codes::s4 || codes == Codes::u4);
    if constexpr (codes == Codes::s4)
        asm("mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c));
    else
        asm("mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c));
}

// d = a·b + c over 32 channels.
template <Codes codes>
SVDQ_DEVICE void mma_m16n8k32(int32_t (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, int32_t const (&c)[4]) {
    static_assert(codes == Codes::s8 || codes == Codes::u8);
    if constexpr (codes == Codes::s8)
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
    else
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
            : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

// d += a·b over 16 channels, in float32.
SVDQ_DEVICE void mma_m16n8k16_f16(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

SVDQ_DEVICE void mma_m16n8k16_bf16(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes, global to shared memory, past L1. They are there after cp_async_wait and a barrier.
SVDQ_DEVICE void cp_async16(void* shared, void const* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :: "r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "l"(global) : "memory");
}
SVDQ_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int groups> SVDQ_DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(groups) : "memory"); }

// A number of which the compiler knows nothing: what is computed from it is not kept from one loop round to the next.
SVDQ_DEVICE uint32_t opaque(uint32_t value) {
    asm volatile("" : "+r"(value));
    return value;
}

// Exact; and rounded to nearest, ties to even. Two numbers to a word, the first in the low half.
SVDQ_DEVICE float float_of_f16(uint16_t bits) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}
SVDQ_DEVICE uint32_t f16x2(float low, float high) {
    uint32_t word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
SVDQ_DEVICE uint32_t bf16x2(float low, float high) {
    uint32_t word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

}  // namespace ptx

#else
#include "../on_cpu/ptx.h"
#endif
