// Where a test build may kill the process: before every write that another process can see. Nothing at all in the product.
#pragma once

#if defined(EEP_TEST_HOOKS)
namespace eep {
inline thread_local void (*crash_hook)() = nullptr;
inline void crash_point() {
  if (crash_hook != nullptr) crash_hook();
}
}  // namespace eep
#else
namespace eep {
inline void crash_point() {}
}  // namespace eep
#endif
