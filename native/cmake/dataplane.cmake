# The data plane as a static library: what the extension module and the C++ tests link.
find_package(Threads REQUIRED)
file(GLOB sources CONFIGURE_DEPENDS src/cpu/*.cpp)
list(APPEND sources src/kernels/portable.cpp src/kernels/choose.cpp src/kernels/checksum.cpp src/kernels/experts.cpp)
# Products are rounded before they are added, so that every instruction set gives the same bits.
set_source_files_properties(src/kernels/portable.cpp src/kernels/experts.cpp PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  list(APPEND sources src/kernels/avx2.cpp src/kernels/avx512.cpp)
  set_source_files_properties(src/kernels/avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-ffp-contract=off")
  # GCC 12 takes the undefined operands in its own AVX-512 header for a mistake.
  set_source_files_properties(src/kernels/avx512.cpp PROPERTIES
    COMPILE_OPTIONS "-mavx512f;-mavx512bw;-mavx512vl;-ffp-contract=off;-Wno-uninitialized;-Wno-maybe-uninitialized")
endif()
add_library(dataplane STATIC ${sources})
target_include_directories(dataplane PUBLIC src)
target_compile_options(dataplane PRIVATE -Wall -Wextra)
target_link_libraries(dataplane PUBLIC Threads::Threads)
