// All kernels of the library, by the names under which launch.cpp asks for them:
//   svdq_quantize_<f16|bf16>_<a4|a8|a16>_g<64|128>_r<0|32|128>      svdq_<tile>_<f16|bf16>[_<s4|u4|s8|u8>]
// Compiles with nvcc and, without any header, with NVRTC; and on a CPU (../on_cpu).
#include "gemm_direct.cuh"
#include "gemm_staged.cuh"
#include "gemv.cuh"
#include "quantize.cuh"
#include "tiles.h"

#if defined(SVDQ_ON_CPU)
#define SVDQ_KERNEL(name, threads, resident, Params, body) SVDQ_REGISTER(name, Params, body)
#else
// `resident`: blocks that a multiprocessor must have room for. Without it, ptxas may make room for more, and spill.
#define SVDQ_KERNEL(name, threads, resident, Params, body) \
    extern "C" __global__ void __launch_bounds__(threads, resident) name(const __grid_constant__ Params p) { body; }
#endif

#define QUANTIZE(T, type, store, bits, group, blocks, rank)                                             \
    SVDQ_KERNEL(svdq_quantize_##type##_##bits##_g##group##_r##rank, quantize::kWarps * 32, 2, QuantizeParams, \
                (quantize::run<T, quantize::Store::store, group / 64, blocks>(p)))
#define QUANTIZE_RANKS(T, type, store, bits, group) \
    QUANTIZE(T, type, store, bits, group, 0, 0)     \
    QUANTIZE(T, type, store, bits, group, 2, 32)    \
    QUANTIZE(T, type, store, bits, group, 8, 128)

#define STAGED(tile, warps_m, warps_n, blocks, stages)                                                                   \
    STAGED_CODES(tile, warps_m, warps_n, blocks, stages, Float16, f16) STAGED_CODES(tile, warps_m, warps_n, blocks, stages, Bfloat16, bf16)
#define STAGED_KERNEL(tile, warps_m, warps_n, blocks, stages, T, type, codes)                        \
    SVDQ_KERNEL(svdq_##tile##_##type##_##codes, 32 * warps_m * warps_n, 8 / (warps_m * warps_n), MultiplyParams,              \
                (staged::Kernel<T, ptx::Codes::codes, warps_m, warps_n, blocks, stages>::run(p)))
#define DIRECT(tile, blocks, warps) DIRECT_CODES(tile, blocks, warps, Float16, f16) DIRECT_CODES(tile, blocks, warps, Bfloat16, bf16)
#define DIRECT_KERNEL(tile, blocks, warps, T, type, codes)                               \
    SVDQ_KERNEL(svdq_##tile##_##type##_##codes, 32 * warps, 2, MultiplyParams,              \
                (direct::Kernel<T, ptx::Codes::codes, blocks, warps>::run(p)))
#define GEMV(tile, rows, warps) GEMV_KERNEL(tile, rows, warps, Float16, f16) GEMV_KERNEL(tile, rows, warps, Bfloat16, bf16)
#define GEMV_KERNEL(tile, rows, warps, T, type) \
    SVDQ_KERNEL(svdq_##tile##_##type, 32 * warps, rows == 1 ? 2 : 1, GemvParams, (gemv::Kernel<T, rows, warps>::run(p)))

// From compute capability 9.0 on, 4-bit multiplications are emulated by hundreds of instructions: there, 4-bit codes are
// stored as bytes and multiplied as such.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
#define STAGED_CODES(...) STAGED_KERNEL(__VA_ARGS__, s4) STAGED_KERNEL(__VA_ARGS__, u4) STAGED_KERNEL(__VA_ARGS__, s8) STAGED_KERNEL(__VA_ARGS__, u8)
#define DIRECT_CODES(...) DIRECT_KERNEL(__VA_ARGS__, s4) DIRECT_KERNEL(__VA_ARGS__, u4) DIRECT_KERNEL(__VA_ARGS__, s8) DIRECT_KERNEL(__VA_ARGS__, u8)
#else
#define STAGED_CODES(...) STAGED_KERNEL(__VA_ARGS__, s8) STAGED_KERNEL(__VA_ARGS__, u8)
#define DIRECT_CODES(...) DIRECT_KERNEL(__VA_ARGS__, s8) DIRECT_KERNEL(__VA_ARGS__, u8)
#endif

SVDQ_TILES(STAGED, DIRECT, GEMV)

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ < 900
QUANTIZE_RANKS(Float16, f16, nibbles, a4, 64)
QUANTIZE_RANKS(Float16, f16, nibbles, a4, 128)
QUANTIZE_RANKS(Bfloat16, bf16, nibbles, a4, 64)
QUANTIZE_RANKS(Bfloat16, bf16, nibbles, a4, 128)
#endif
QUANTIZE_RANKS(Float16, f16, bytes, a8, 64)
QUANTIZE_RANKS(Float16, f16, bytes, a8, 128)
QUANTIZE_RANKS(Bfloat16, bf16, bytes, a8, 64)
QUANTIZE_RANKS(Bfloat16, bf16, bytes, a8, 128)
QUANTIZE(Float16, f16, none, a16, 64, 2, 32)
QUANTIZE(Float16, f16, none, a16, 64, 8, 128)
QUANTIZE(Bfloat16, bf16, none, a16, 64, 2, 32)
QUANTIZE(Bfloat16, bf16, none, a16, 64, 8, 128)
