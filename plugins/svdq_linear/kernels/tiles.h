// The tile table. One row = one tactic of TensorRT = one set of kernels = one set of test cases (tests/plugins read it).
//
// A warp always multiplies 64 columns: its lanes then end with 16 neighbouring ones each (plugins/README.md).
//   STAGED(name, warps along M, warps along N, 16-row blocks per warp, stages of shared memory)
//   DIRECT(name, 16-row blocks, warps along K)      fragments straight from global memory, for few rows
//   GEMV(name, rows, warps along K)                 weight-only: float32 on CUDA cores
//
// STAGED rows keep to 48 KiB of static shared memory, which needs no opt-in; a stage of m256n128 with 8-bit codes takes
// 20.75 KiB, so it has two there.
#define SVDQ_TILES(STAGED, DIRECT, GEMV) \
    DIRECT(m16n64, 1, 8)                 \
    DIRECT(m32n64, 2, 4)                 \
    STAGED(m64n128, 2, 2, 2, 4)          \
    STAGED(m128n128, 2, 2, 4, 4)         \
    STAGED(m256n128, 4, 2, 4, 3)         \
    GEMV(gemv1, 1, 8)                    \
    GEMV(gemv4, 4, 8)                    \
    GEMV(gemv6, 6, 4)
