// C interface of the kernels: raw device pointers in, CUDA driver API underneath. The TensorRT shells and Python
// (plugins/device.py) call nothing else. Nothing here needs a CUDA toolkit or TensorRT.
//
// Constants are in the packed layout of plugins/svdq_linear/layout.py, which says each one's shape.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define SVDQ_API
#else
#define SVDQ_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define SVDQ_LAYOUT_VERSION 1

enum SvdqType { SVDQ_FLOAT16 = 0, SVDQ_BFLOAT16 = 1 };
enum SvdqActivation { SVDQ_NONE = 0, SVDQ_GELU_TANH = 1, SVDQ_SILU = 2 };

// Every call but the ones that return a count, a size or a text returns one of these; 0 is success.
enum SvdqStatus {
    SVDQ_OK = 0,
    SVDQ_BAD_LAYER = 1,      // a field of SvdqLayer is out of range, or two do not fit together
    SVDQ_BAD_ARGUMENT = 2,   // a null or misaligned pointer, m < 0, no such tile, workspace too small
    SVDQ_NO_DRIVER = 3,      // libcuda.so.1 could not be opened, or lacks a function
    SVDQ_NO_CONTEXT = 4,     // the calling thread has no current CUDA context
    SVDQ_NO_KERNELS = 5,     // the library holds no kernels for this GPU's compute capability
    SVDQ_LAUNCH_FAILED = 6,  // the driver refused a launch
};

// Everything about a layer but its pointers; spec.py has the same names. dtype is a SvdqType, activation a
// SvdqActivation; rank is a multiple of 16, 0 without a branch.
typedef struct SvdqLayer {
    int32_t n;
    int32_t k;
    int32_t rank;
    int32_t group_size;
    int32_t act_bits;
    int32_t act_signed;
    int32_t activation;
    int32_t dtype;
    float act_shift;
} SvdqLayer;

// Device pointers, 16-byte aligned. down and up are null exactly where rank is 0.
typedef struct SvdqConstants {
    void const* qweight;
    void const* wscale;
    void const* inv_smooth;
    void const* down;
    void const* up;
    void const* bias;
} SvdqConstants;

SVDQ_API char const* svdq_status_text(int32_t status);

// Whether the fields make sense; needs no GPU.
SVDQ_API int32_t svdq_check_layer(SvdqLayer const* layer);

// Rows of the tile table are tactics: 0 <= tile < svdq_tile_count(). Valid depends on the layer (weight-only or not)
// and on the number of rows m; some row is valid for every m. svdq_default_tile picks one without timing (-1: bad layer).
SVDQ_API int32_t svdq_tile_count(void);
SVDQ_API char const* svdq_tile_name(int32_t tile);
SVDQ_API int32_t svdq_tile_valid(SvdqLayer const* layer, int64_t m, int32_t tile);
SVDQ_API int32_t svdq_default_tile(SvdqLayer const* layer, int64_t m);

// Bytes of scratch memory, 256-byte aligned, that suffice for every number of rows up to m and every tile.
// Needs no GPU: it is a bound over all of them.
SVDQ_API size_t svdq_workspace_bytes(SvdqLayer const* layer, int64_t m);

// Loads the kernels into the calling thread's current context. Must have happened once per context before svdq_enqueue
// is captured into a CUDA graph; svdq_enqueue calls it where it has not.
SVDQ_API int32_t svdq_prepare(void);

// y = activation(Q(x̂)·dequant(qweight)ᵀ + (x·down)·up + bias) on `stream` (a CUstream). x is T[m, k], y T[m, n], both
// dense and aligned to their elements; m = 0 is a no-op. Neither allocates nor synchronises.
SVDQ_API int32_t svdq_enqueue(SvdqLayer const* layer, SvdqConstants const* constants, void const* x, void* y, int64_t m,
                              int32_t tile, void* workspace, size_t workspace_bytes, void* stream);

// The two halves of svdq_enqueue, for benchmarks and tests: quantise (with x·down) writes the workspace, multiply
// reads it. A weight-only layer without a branch has nothing to quantise: that half is then a no-op.
SVDQ_API int32_t svdq_enqueue_quantize(SvdqLayer const* layer, SvdqConstants const* constants, void const* x, int64_t m,
                                       int32_t tile, void* workspace, size_t workspace_bytes, void* stream);
SVDQ_API int32_t svdq_enqueue_multiply(SvdqLayer const* layer, SvdqConstants const* constants, void const* x, void* y,
                                       int64_t m, int32_t tile, void* workspace, size_t workspace_bytes, void* stream);

#ifdef __cplusplus
}
#endif
