// What a launch passes to a kernel: one struct by value, the same for the host and the device compiler.
#pragma once
#ifdef __CUDACC_RTC__
#include "ptx.cuh"
#else
#include <cstdint>
#endif

// steps: blocks of 64 channels, K padded to whole groups. row_blocks: blocks of 16 rows for which there is room: whole
// tiles of every kernel. What lies beyond m is never written, may be read, and reaches no element of y.
struct QuantizeParams {
    void const* x;           // T[m, k]
    void const* inv_smooth;  // T[64 steps]
    void const* down;        // packed, or null
    void* codes;             // fragments: [row_blocks, steps, 512 or 1024 bytes]
    void* scales;            // T[steps / group_steps, 16 row_blocks]
    float* hidden;           // x·down in parts along K: [splits, 16 row_blocks, rank]
    uint32_t* counters;      // to be zeroed for the multiplication
    int32_t counter_count;
    int32_t m;
    int32_t k;
    int32_t steps;
    int32_t row_blocks;
    int32_t rank;
    int32_t steps_per_warp;  // along K; a multiple of group_steps
    int32_t warps_along_k;   // of the block's 4: 1 or 4
    float shift;
    float qmax;
    int32_t is_signed;
    int32_t vector_loads;    // rows of x begin at multiples of 16 bytes
};

struct MultiplyParams {
    void const* codes;
    void const* scales;
    float const* hidden;
    void const* qweight;  // packed, as are the next four
    void const* wscale;
    void const* up;       // or null
    void const* bias;
    void* y;              // T[m, n]
    float* partial;       // sums of each split, where there are several
    uint32_t* counters;   // one per tile, zero
    int32_t m;
    int32_t n;
    int32_t steps;
    int32_t row_blocks;
    int32_t column_blocks;  // of 64
    int32_t rank;
    int32_t group_shift;    // group = step >> group_shift
    int32_t hidden_splits;
    int32_t steps_per_split;
    int32_t activation;
    int32_t vector_stores;  // rows of y begin at multiples of 16 bytes
};

// Weight-only: x is smoothed, not quantised.
struct GemvParams {
    void const* x;
    void const* inv_smooth;
    float const* hidden;
    void const* qweight;
    void const* wscale;
    void const* up;
    void const* bias;
    void* y;
    int32_t m;
    int32_t n;
    int32_t k;
    int32_t steps;
    int32_t row_blocks;  // of hidden
    int32_t column_blocks;
    int32_t rank;
    int32_t group_shift;
    int32_t hidden_splits;
    int32_t activation;
    int32_t vector_loads;
    float shift;
};
