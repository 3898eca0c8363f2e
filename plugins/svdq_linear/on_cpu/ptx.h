// What kernels/ptx.cuh offers, on a CPU, bit for bit; and the parts of CUDA C++ that the kernels use.
//
// Asynchronous copies land when they are waited for, so that a missing wait or barrier reads old data; with
// SVDQ_CPU_COPIES=early they land at once, so that a stage overwritten too early is seen too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>

#include "block.h"

#define SVDQ_ON_CPU 1
#define SVDQ_DEVICE inline
#define SVDQ_UNROLL
#define SVDQ_ROLLED
#define __shared__ static thread_local
#define threadIdx (dim3{static_cast<unsigned>(on_cpu::Block::active()->current), 0, 0})
#define blockIdx (on_cpu::Block::active()->index)
#define gridDim (on_cpu::Block::active()->grid)

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

template <class To, class From> inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}
inline float __int_as_float(int32_t v) { return bits_as<float>(v); }
inline float __uint_as_float(uint32_t v) { return bits_as<float>(v); }
inline uint32_t __float_as_uint(float v) { return bits_as<uint32_t>(v); }
inline float fmaf(float a, float b, float c) { return std::fma(a, b, c); }
inline float4 __ldcg(float4 const* p) { return *p; }
inline void __threadfence() {}
inline void __syncthreads() { on_cpu::Block::active()->barrier(); }
inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {  // blocks run one after the other
    uint32_t const old = *at;
    *at += value;
    return old;
}
template <class V> inline V __shfl_xor_sync(unsigned, V value, int mask) {
    uint32_t word = bits_as<uint32_t>(value);
    on_cpu::Block::active()->collective("shfl_xor", &word, 1, &word, 1, [mask](auto const& in, auto& out) {
        for (int l = 0; l < 32; ++l) out[l][0] = in[l ^ mask][0];
    });
    return bits_as<V>(word);
}

namespace ptx {

enum class Codes { s4, u4, s8, u8 };

// A[16][k] and B[8][k] from fragments, then D. `element(word, i)` is number i of a word; per_word of them.
template <class Number, int k, int per_word, class ElementA, class ElementB, class Sum>
inline void multiply(char const* name, uint32_t const (&a)[4], uint32_t b0, uint32_t b1, Sum (&d)[4], Sum const (&c)[4],
                     ElementA element_a, ElementB element_b) {
    uint32_t words[10] = {a[0], a[1], a[2], a[3], b0, b1};
    for (int i = 0; i < 4; ++i) words[6 + i] = bits_as<uint32_t>(c[i]);
    uint32_t result[4];
    on_cpu::Block::active()->collective(name, words, 10, result, 4, [&](auto const& in, auto& out) {
        Number A[16][k], B[8][k];
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < per_word; ++i) {
                int const p = l % 4 * per_word + i, r = l / 4;
                for (int w = 0; w < 4; ++w) A[r + 8 * (w % 2)][p + k / 2 * (w / 2)] = element_a(in[l][w], i);
                for (int w = 0; w < 2; ++w) B[r][p + k / 2 * w] = element_b(in[l][4 + w], i);
            }
        for (int l = 0; l < 32; ++l)
            for (int i = 0; i < 4; ++i) {
                Sum sum = bits_as<Sum>(in[l][6 + i]);
                for (int j = 0; j < k; ++j) sum += static_cast<Sum>(A[l / 4 + 8 * (i / 2)][j]) * static_cast<Sum>(B[l % 4 * 2 + i % 2][j]);
                out[l][i] = bits_as<uint32_t>(sum);
            }
    });
    for (int i = 0; i < 4; ++i) d[i] = bits_as<Sum>(result[i]);
}

inline int16_t nibble(uint32_t word, int i) { return static_cast<int16_t>(word >> (4 * i) & 15u); }
inline int16_t signed_nibble(uint32_t word, int i) { return static_cast<int16_t>((nibble(word, i) ^ 8) - 8); }
inline int16_t byte(uint32_t word, int i) { return static_cast<int16_t>(word >> (8 * i) & 255u); }
inline int16_t signed_byte(uint32_t word, int i) { return static_cast<int16_t>((byte(word, i) ^ 128) - 128); }

template <Codes codes>
inline void mma_m16n8k64(int32_t (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, int32_t c) {
    static_assert(codes == Codes::s4 || codes == Codes::u4);
    int32_t const cs[4] = {c, c, c, c};
    multiply<int16_t, 64, 8>("mma_m16n8k64", a, b0, b1, d, cs, codes == Codes::s4 ? signed_nibble : nibble, signed_nibble);
}

template <Codes codes>
inline void mma_m16n8k32(int32_t (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1, int32_t const (&c)[4]) {
    static_assert(codes == Codes::s8 || codes == Codes::u8);
    multiply<int16_t, 32, 4>("mma_m16n8k32", a, b0, b1, d, c, codes == Codes::s8 ? signed_byte : byte, signed_byte);
}

inline float float_of_f16(uint16_t bits) {
    uint32_t const sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, mantissa = bits & 1023u;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent > 0) return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    return __uint_as_float(sign | __float_as_uint(static_cast<float>(mantissa) * 0x1p-24f));
}
inline uint16_t f16_of_float(float value) {
    uint32_t const bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
    if (size < 0x38800000u)                                                // below 2^-14: multiples of 2^-24
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(__uint_as_float(size) * 0x1p24f)));
    uint32_t const kept = size - 0x38000000u;
    return static_cast<uint16_t>(sign | (kept + 0xfffu + (kept >> 13 & 1u)) >> 13);
}
inline float float_of_bf16(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
inline uint16_t bf16_of_float(float value) {
    uint32_t const bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
inline uint32_t f16x2(float low, float high) { return f16_of_float(low) | static_cast<uint32_t>(f16_of_float(high)) << 16; }
inline uint32_t bf16x2(float low, float high) { return bf16_of_float(low) | static_cast<uint32_t>(bf16_of_float(high)) << 16; }

inline void mma_m16n8k16_f16(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    auto const element = [](uint32_t word, int i) { return float_of_f16(static_cast<uint16_t>(word >> (16 * i))); };
    float const c[4] = {d[0], d[1], d[2], d[3]};
    multiply<float, 16, 2>("mma_m16n8k16_f16", a, b0, b1, d, c, element, element);
}
inline void mma_m16n8k16_bf16(float (&d)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
    auto const element = [](uint32_t word, int i) { return float_of_bf16(static_cast<uint16_t>(word >> (16 * i))); };
    float const c[4] = {d[0], d[1], d[2], d[3]};
    multiply<float, 16, 2>("mma_m16n8k16_bf16", a, b0, b1, d, c, element, element);
}

inline void cp_async16(void* shared, void const* global) {
    static bool const early = [] {
        char const* text = std::getenv("SVDQ_CPU_COPIES");
        return text && std::string(text) == "early";
    }();
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % 16) on_cpu::fail("cp_async16: address is no multiple of 16");
    on_cpu::Copy copy{shared, {}};
    std::memcpy(copy.bytes, global, 16);
    if (early) std::memcpy(shared, copy.bytes, 16);
    on_cpu::Block::active()->copies().open.push_back(copy);
}
inline void cp_async_commit() {
    auto& copies = on_cpu::Block::active()->copies();
    copies.groups.push_back(std::move(copies.open));
    copies.open.clear();
}
template <int groups> inline void cp_async_wait() {
    auto& committed = on_cpu::Block::active()->copies().groups;
    while (committed.size() > static_cast<size_t>(groups)) {
        for (auto const& copy : committed.front()) std::memcpy(copy.to, copy.bytes, 16);
        committed.erase(committed.begin());
    }
}

inline uint32_t opaque(uint32_t value) { return value; }

}  // namespace ptx

namespace on_cpu {

// Kernels by name; each takes its struct of parameters by address.
struct Kernel {
    std::function<void(void const*)> run;
    size_t params_bytes;
};

inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> table;
    return table;
}

struct Registration {
    Registration(char const* name, Kernel kernel) { kernels()[name] = std::move(kernel); }
};

}  // namespace on_cpu

#define SVDQ_REGISTER(name, Params, body)                  \
    static void name(Params const& p) { body; }            \
    static on_cpu::Registration const name##_registration( \
        #name, {[](void const* params) { name(*static_cast<Params const*>(params)); }, sizeof(Params)});
