// All that TensorRT's headers take from the CUDA runtime's: two handles that are only passed on. With this directory
// last in the search path (-idirafter, so that a toolkit's own header wins) the shells compile without CUDA.
#pragma once

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
