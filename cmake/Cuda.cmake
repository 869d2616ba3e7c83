# The module for NVIDIA GPUs. It links the static run-time library of CUDA and nothing else of NVIDIA's: it loads without
# a driver and says so. With CARAVAN_SIMT the same sources are compiled for the host under test/native/simt.
file(GLOB CARAVAN_CUDA_HOST CONFIGURE_DEPENDS native/cuda/*.cc)
file(GLOB CARAVAN_CUDA_KERNELS CONFIGURE_DEPENDS native/cuda/*.cu native/kernels/*.cu)
set(CARAVAN_CUDA_CORE native/core/allocator.cc native/core/error.cc native/core/scratch.cc)

function(caravan_cuda_module name)
  add_library(${name} MODULE ${ARGN} ${CARAVAN_CUDA_HOST} ${CARAVAN_CUDA_KERNELS} ${CARAVAN_CUDA_CORE})
  set_target_properties(${name} PROPERTIES PREFIX "" SUFFIX ".so" OUTPUT_NAME caravan_cuda LINKER_LANGUAGE CXX
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/Release)
  target_compile_definitions(${name} PRIVATE CARAVAN_CUDA CARAVAN_ISA=cuda)
  target_link_libraries(${name} PRIVATE Threads::Threads ${CMAKE_DL_LIBS})
endfunction()

if(CARAVAN_SIMT)
  # Kernels that are emulated need not be fast; they must compile fast. The harness is a small file that must be fast.
  set(fast test/native/simt/simt.cc test/native/simt/simt_hopper.cc test/native/simt/simt_tensor.cc)
  set_source_files_properties(${fast} PROPERTIES COMPILE_OPTIONS -O2)
  add_compile_options(-O1 -Wno-unknown-pragmas -Wno-unused-function)
  if(CARAVAN_SIMT STREQUAL "address")
    set(sanitize -fsanitize=address,undefined -fno-sanitize-recover=undefined)
    add_compile_options(${sanitize} -g1 -fno-omit-frame-pointer)
    add_link_options(${sanitize})
  endif()
  include_directories(test/native/simt)
  add_library(harness OBJECT ${fast} test/native/simt/simt_runtime.cc)
  set_source_files_properties(${CARAVAN_CUDA_KERNELS} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  # Names for profilers need nothing of a GPU. Behind all other folders: the toolkit has a cuda_runtime.h, too.
  find_path(CARAVAN_NVTX_INCLUDE nvtx3/nvToolsExt.h HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
    PATH_SUFFIXES include)
  if(CARAVAN_NVTX_INCLUDE)
    set_source_files_properties(native/cuda/ranges.cc PROPERTIES COMPILE_OPTIONS "-idirafter${CARAVAN_NVTX_INCLUDE}")
  endif()
  caravan_cuda_module(caravan_simt $<TARGET_OBJECTS:harness>)
  target_compile_definitions(caravan_simt PRIVATE CARAVAN_SIMT)
  add_executable(harness_test test/native/simt/harness_test.cc test/native/simt/harness_hopper.cc
    $<TARGET_OBJECTS:harness>)
  return()
endif()

if(NOT CARAVAN_ADDON OR CARAVAN_CUDA STREQUAL "OFF")
  return()
endif()
find_program(CARAVAN_NVCC nvcc HINTS ENV CUDACXX ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin)
if(NOT CARAVAN_NVCC)
  if(CARAVAN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "CARAVAN_CUDA is ON, and nvcc was not found: install the CUDA toolkit, or set CUDA_HOME")
  endif()
  message(STATUS "nvcc was not found: no module for NVIDIA GPUs")
  return()
endif()
get_filename_component(toolkit ${CARAVAN_NVCC} REALPATH)
get_filename_component(toolkit ${toolkit} DIRECTORY)
get_filename_component(toolkit ${toolkit} DIRECTORY)
find_path(CARAVAN_CUDA_INCLUDE cuda_runtime.h HINTS ${toolkit}/include ${toolkit}/targets/x86_64-linux/include
  /usr/local/cuda/include)
find_library(CARAVAN_CUDART cudart_static HINTS ${toolkit}/lib64 ${toolkit}/targets/x86_64-linux/lib
  /usr/local/cuda/lib64)
if(NOT CARAVAN_CUDA_INCLUDE OR NOT CARAVAN_CUDART)
  if(CARAVAN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "nvcc is at ${CARAVAN_NVCC}, but cuda_runtime.h or libcudart_static.a was not found beside it")
  endif()
  message(STATUS "the CUDA toolkit of ${CARAVAN_NVCC} is not whole: no module for NVIDIA GPUs")
  return()
endif()

# CMake's own support of CUDA knows C++20 from 3.26 on only, hence plain commands.
# -O is the host's part of a kernel file, which checks and launches; device code is always optimised in full.
# 177: kernels live in anonymous namespaces, where those that only a launch names count as unused.
set(launcher)
if(CARAVAN_CCACHE)
  set(launcher ${CARAVAN_CCACHE})
endif()
set(nvcc ${launcher} ${CARAVAN_NVCC} -std=c++20 -O1 -Xfatbin=-compress-all --expt-relaxed-constexpr -diag-suppress=177
  -DCARAVAN_CUDA -DCARAVAN_ISA=cuda -I${CMAKE_CURRENT_SOURCE_DIR}/native
  -Xcompiler=-fPIC,-fvisibility=hidden,-Wall)
# One PTX, assembled for every architecture: the front end, most of the time that nvcc takes, runs once a file. As long
# as no kernel is written for newer GPUs alone, their machine code is the same as from PTX of their own. What is written
# for compute capability 9.0 alone lies in files of its own, *_hopper.cu, compiled for that and nothing else. Files whose
# kernels may be started early there (cuda/chain.h) are compiled for it beside the others.
list(GET CARAVAN_CUDA_ARCHS 0 oldest)
list(TRANSFORM CARAVAN_CUDA_ARCHS PREPEND sm_ OUTPUT_VARIABLE codes)
string(JOIN "," codes ${codes} compute_${oldest})
set(everywhere -gencode=arch=compute_${oldest},code=[${codes}])
set(chained ${everywhere})
if("90a" IN_LIST CARAVAN_CUDA_ARCHS)
  set(hopper -gencode=arch=compute_90a,code=sm_90a)
  list(REMOVE_ITEM codes sm_90a)
  string(JOIN "," codes ${codes} compute_${oldest})
  set(chained -gencode=arch=compute_${oldest},code=[${codes}] ${hopper} -DCARAVAN_CHAINED)
else()
  message(STATUS "CARAVAN_CUDA_ARCHS has no 90a: the module is without its kernels for compute capability 9.0")
  set(hopper ${everywhere} -DCARAVAN_NO_HOPPER)
endif()
set(objects)
foreach(source ${CARAVAN_CUDA_KERNELS})
  get_filename_component(folder ${source} DIRECTORY)
  get_filename_component(folder ${folder} NAME)
  get_filename_component(stem ${source} NAME)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${folder}_${stem}.o)
  set(architectures ${everywhere})
  if(stem MATCHES "_hopper\\.cu$")
    set(architectures ${hopper})
  endif()
  file(STRINGS ${source} includes_chain REGEX "^#include \"cuda/chain.h\"")
  if(includes_chain)
    set(architectures ${chained})
  endif()
  add_custom_command(OUTPUT ${object} DEPENDS ${source} DEPFILE ${object}.d COMMENT "nvcc ${stem}" VERBATIM
    COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/cuda
    COMMAND ${nvcc} ${architectures} -MD -MF ${object}.d -c ${source} -o ${object})
  list(APPEND objects ${object})
endforeach()
set(CARAVAN_CUDA_KERNELS ${objects})
set_source_files_properties(${objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
caravan_cuda_module(caravan_cuda)
target_include_directories(caravan_cuda SYSTEM PRIVATE ${CARAVAN_CUDA_INCLUDE})
target_link_libraries(caravan_cuda PRIVATE ${CARAVAN_CUDART} rt)
target_link_options(caravan_cuda PRIVATE -Wl,--exclude-libs,ALL -Wl,-z,relro,-z,now -s)
