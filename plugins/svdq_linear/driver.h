// The CUDA driver API, opened at run time: the library loads on a machine without a GPU and is bound to no CUDA runtime.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "launch.h"
#include "plan.h"

namespace svdq {

// The kernels of the calling thread's current context.
struct Kernels;

// Finds, or loads, the kernels of the current context: SVDQ_OK and `kernels`, or why not.
int32_t current_kernels(Kernels** kernels);

Device const& device_of(Kernels const& kernels);

// Launches `name` with one struct of parameters. SVDQ_NO_KERNELS where there is no such kernel.
int32_t launch(Kernels& kernels, std::string const& name, Dim grid, int threads, void* params, void* stream);

}  // namespace svdq
