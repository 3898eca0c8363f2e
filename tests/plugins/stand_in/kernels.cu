// Stands for the real kernels where a test is about compilers and packing: compiles in a second.
#include "scale.cuh"

struct Params {
    float* values;
    int count;
};

extern "C" __global__ void __launch_bounds__(128) svdq_scale(const __grid_constant__ Params p) {
    int const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < p.count) p.values[i] *= kScale;
}

extern "C" __global__ void __launch_bounds__(128) svdq_reverse(const __grid_constant__ Params p) {
    __shared__ float tile[128];
    tile[threadIdx.x] = p.values[threadIdx.x];
    __syncthreads();
    p.values[threadIdx.x] = tile[127 - threadIdx.x];
}
