# TensorRT's headers, of which the plugin's shells need no library. Included by ../CMakeLists.txt; ../library.py runs it
# alone: cmake -DSVDQ_TENSORRT=10 -DSVDQ_DOWNLOADS=<directory> -P tensorrt_headers.cmake
#
# In:  SVDQ_TENSORRT    10 (and later) or 8: the shell's plugin interface is another one. AUTO: whichever is found.
#      TensorRT_ROOT    (or the environment's) where TensorRT lies, alone to be searched if given
#      SVDQ_DOWNLOADS   directory for headers from NVIDIA's open-source repository, where none are found
# Out: SVDQ_TENSORRT_INCLUDE, SVDQ_TENSORRT_VERSION ("10.3.0"); both empty where there are none

set(SVDQ_TENSORRT_INCLUDE "")
set(SVDQ_TENSORRT_VERSION "")
# The oldest TensorRT that the shells are for: JetPack 6.1's and JetPack 5.1's. Newer ones load what these compile.
set(svdq_tensorrt_tag_10 v10.3.0)
set(svdq_tensorrt_tag_8 8.5.2)

# Sets `version` to that of the headers in `directory`, or to nothing where they are missing or not of the wanted major.
function(svdq_tensorrt_version directory wanted version)
    set(${version} "" PARENT_SCOPE)
    if(NOT EXISTS ${directory}/NvInferVersion.h OR NOT EXISTS ${directory}/NvInferRuntime.h)
        return()
    endif()
    file(READ ${directory}/NvInferVersion.h text)
    set(numbers "")
    foreach(part MAJOR MINOR PATCH)
        # TensorRT 10.11 and later define NV_TENSORRT_MAJOR by way of TRT_MAJOR_ENTERPRISE.
        if(text MATCHES "#define (NV_TENSORRT_${part}|TRT_${part}_ENTERPRISE) ([0-9]+)")
            list(APPEND numbers ${CMAKE_MATCH_2})
        else()
            return()
        endif()
    endforeach()
    list(GET numbers 0 major)
    if(wanted STREQUAL "AUTO" OR (wanted EQUAL 8 AND major EQUAL 8) OR (wanted EQUAL 10 AND major GREATER_EQUAL 10))
        string(REPLACE ";" "." numbers "${numbers}")
        set(${version} ${numbers} PARENT_SCOPE)
    endif()
endfunction()

if(NOT TensorRT_ROOT)
    set(TensorRT_ROOT "$ENV{TensorRT_ROOT}")
endif()
if(TensorRT_ROOT)
    set(places ${TensorRT_ROOT}/include ${TensorRT_ROOT})
else()
    set(places /usr/include/x86_64-linux-gnu /usr/include/aarch64-linux-gnu /usr/local/tensorrt/include
        /opt/tensorrt/include /usr/include)
endif()
foreach(place IN LISTS places)
    svdq_tensorrt_version(${place} ${SVDQ_TENSORRT} version)
    if(version AND NOT SVDQ_TENSORRT_INCLUDE)
        set(SVDQ_TENSORRT_INCLUDE ${place})
        set(SVDQ_TENSORRT_VERSION ${version})
    endif()
endforeach()

if(NOT SVDQ_TENSORRT_INCLUDE AND NOT TensorRT_ROOT AND SVDQ_DOWNLOADS)
    set(major ${SVDQ_TENSORRT})
    if(major STREQUAL "AUTO")
        set(major 10)
    endif()
    set(tag ${svdq_tensorrt_tag_${major}})
    string(REPLACE "v" "" number ${tag})
    set(directory ${SVDQ_DOWNLOADS}/tensorrt-${number})
    file(STRINGS ${CMAKE_CURRENT_LIST_DIR}/tensorrt-${number}.sha256 lines)
    set(complete ON)
    foreach(line IN LISTS lines)
        string(REGEX MATCH "^([0-9a-f]+)  (.+)$" unused "${line}")
        set(hash ${CMAKE_MATCH_1})
        set(header ${CMAKE_MATCH_2})
        set(seen "")
        if(EXISTS ${directory}/${header})
            file(SHA256 ${directory}/${header} seen)
        endif()
        if(complete AND NOT seen STREQUAL hash)
            file(DOWNLOAD https://raw.githubusercontent.com/NVIDIA/TensorRT/${tag}/include/${header}
                ${directory}/${header} TIMEOUT 60 INACTIVITY_TIMEOUT 15 STATUS status)
            # An error's remains and a proxy's error page alike are no header: only the hash counts.
            file(SHA256 ${directory}/${header} seen)
            if(NOT seen STREQUAL hash)
                file(REMOVE ${directory}/${header})
                message(STATUS "TensorRT ${number}: could not fetch ${header} (${status})")
                set(complete OFF)
            endif()
        endif()
    endforeach()
    if(complete)
        set(SVDQ_TENSORRT_INCLUDE ${directory})
        set(SVDQ_TENSORRT_VERSION ${number})
    endif()
endif()

if(CMAKE_SCRIPT_MODE_FILE)
    message(STATUS "SVDQ_TENSORRT_INCLUDE=${SVDQ_TENSORRT_INCLUDE}")
    message(STATUS "SVDQ_TENSORRT_VERSION=${SVDQ_TENSORRT_VERSION}")
endif()
