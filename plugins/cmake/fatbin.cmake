# The kernels, compiled by nvcc into one image for all of SVDQ_ARCHS. Sets SVDQ_FATBIN to it.
#
# CMake's CUDA language is not used: it would want a CUDA toolkit for the library's own machine, which only the kernels'
# compiler is needed for. nvcc itself calls fatbinary with the options of its version.

find_program(SVDQ_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin PATHS /usr/local/cuda/bin /opt/cuda/bin)
if(NOT SVDQ_NVCC)
    message(FATAL_ERROR "nvcc is not found, so the kernels cannot be compiled: install a CUDA toolkit (JetPack has one), "
        "set CUDA_HOME or SVDQ_NVCC, or give their image as SVDQ_FATBIN.")
endif()
execute_process(COMMAND ${SVDQ_NVCC} --version OUTPUT_VARIABLE said)
if(NOT said MATCHES "release ([0-9]+\\.[0-9]+)")
    message(FATAL_ERROR "${SVDQ_NVCC} --version does not say its release: name another nvcc in SVDQ_NVCC.")
endif()
set(svdq_cuda ${CMAKE_MATCH_1})

# Architectures (plugins/architectures.py has the same) and the CUDA release that knows each.
set(svdq_known "80 12.0" "86 12.0" "87 12.0" "89 12.0" "90a 12.0" "100f 13.0" "110f 13.0" "120f 13.0")
set(svdq_jetson 87 110f)
if(NOT SVDQ_ARCHS)
    foreach(row IN LISTS svdq_known)
        separate_arguments(row)
        list(GET row 0 arch)
        list(GET row 1 since)
        set(fits ON)
        if(arch IN_LIST svdq_jetson)
            if(NOT CMAKE_SYSTEM_PROCESSOR STREQUAL "aarch64")
                set(fits OFF)
            endif()
        elseif(EXISTS /etc/nv_tegra_release AND NOT CMAKE_CROSSCOMPILING)
            set(fits OFF)
        endif()
        if(fits AND NOT svdq_cuda VERSION_LESS since)
            list(APPEND SVDQ_ARCHS ${arch})
        endif()
    endforeach()
endif()

set(options -std=c++17 --ptxas-options=-warn-spills -Xfatbin -compress-all --threads 0)
if(NOT svdq_cuda VERSION_LESS 12.8)
    list(APPEND options --compress-mode=speed)  # LZ4: drivers before 12.4 do not read zstd
endif()
foreach(arch IN LISTS SVDQ_ARCHS)
    list(APPEND options -gencode arch=compute_${arch},code=sm_${arch})
endforeach()
set(SVDQ_FATBIN ${CMAKE_CURRENT_BINARY_DIR}/kernels.fatbin)
file(GLOB svdq_kernel_sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/svdq_linear/kernels/*)
add_custom_command(
    OUTPUT ${SVDQ_FATBIN}
    COMMAND ${SVDQ_NVCC} ${options} -fatbin -o ${SVDQ_FATBIN} ${CMAKE_CURRENT_SOURCE_DIR}/svdq_linear/kernels/kernels.cu
    DEPENDS ${svdq_kernel_sources}
    COMMENT "Compiling kernels for sm ${SVDQ_ARCHS} with CUDA ${svdq_cuda} (about a minute each)"
    VERBATIM)
