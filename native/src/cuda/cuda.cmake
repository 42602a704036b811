# The CUDA backend: a module of its own, built where a CUDA compiler is found. AUTO builds it if it can; ON insists; OFF leaves it out.
set(EEP_CUDA AUTO CACHE STRING "Build the CUDA backend: AUTO, ON or OFF")
set_property(CACHE EEP_CUDA PROPERTY STRINGS AUTO ON OFF)
set(EEP_CUDA_ARCHITECTURES "80-virtual;90-real" CACHE STRING "Code for Hopper, and PTX that newer and older (sm_80+) devices compile")

if(NOT EEP_CUDA STREQUAL OFF)
  include(CheckLanguage)
  # An nvcc outside PATH is found where its installers put it.
  if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(EEP_NVCC nvcc PATHS /usr/local/cuda/bin /opt/cuda/bin)
    if(EEP_NVCC)
      set(CMAKE_CUDA_COMPILER ${EEP_NVCC})
    endif()
  endif()
  set(CMAKE_CUDA_ARCHITECTURES ${EEP_CUDA_ARCHITECTURES})
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit 12.5)
  endif()
  if(CMAKE_CUDA_COMPILER AND CUDAToolkit_FOUND AND TARGET CUDA::cudart_static)
    # CMake 3.25 does not know this dialect's flag for nvcc, which has it since release 12.0.
    foreach(flavour STANDARD EXTENSION)
      if(NOT CMAKE_CUDA20_${flavour}_COMPILE_OPTION)
        set(CMAKE_CUDA20_${flavour}_COMPILE_OPTION "-std=c++20")
      endif()
    endforeach()
    pybind11_add_module(_cuda
      src/cuda/bindings.cpp src/cuda/driver.cpp src/cuda/heartbeat.cpp src/cuda/links.cpp src/cuda/memory.cpp src/cuda/pack.cpp src/cuda/rank.cpp
      src/cuda/kernels.cu src/cpu/control.cpp src/cpu/tables.cpp)
    target_include_directories(_cuda PRIVATE src)
    # Static and without the driver: the module is imported on machines that have neither.
    set_target_properties(_cuda PROPERTIES CUDA_RUNTIME_LIBRARY Static CUDA_STANDARD 20 CUDA_ARCHITECTURES "${EEP_CUDA_ARCHITECTURES}"
      INTERPROCEDURAL_OPTIMIZATION OFF)
    target_link_libraries(_cuda PRIVATE CUDA::cudart_static Threads::Threads)
    target_compile_options(_cuda PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>)  # warnings are errors in the tests
    install(TARGETS _cuda DESTINATION native)
    message(STATUS "CUDA backend: yes (${CMAKE_CUDA_COMPILER_VERSION})")
  elseif(EEP_CUDA STREQUAL ON)
    message(FATAL_ERROR "EEP_CUDA=ON, but no CUDA compiler of release 12.5 or newer was found; set CUDACXX to its nvcc")
  else()
    message(STATUS "CUDA backend: no CUDA compiler of release 12.5 or newer was found; building the CPU backend only")
  endif()
endif()
