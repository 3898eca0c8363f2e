# For Jetson from another machine: -DCMAKE_TOOLCHAIN_FILE=plugins/cmake/aarch64-linux-gnu.cmake, with Debian's or
# Ubuntu's g++-aarch64-linux-gnu. No CUDA files for aarch64 are needed: kernels are the same for every machine, and the
# driver is opened when the library runs.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_ASM_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
