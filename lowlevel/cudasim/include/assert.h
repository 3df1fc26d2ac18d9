// assert() of a kernel: reported with its line, block and thread. As CUDA's and C's, it means nothing under
// NDEBUG, and a second inclusion defines it anew.
#include <cudasim/runtime.h>

#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition)                                                                   \
  ((condition) ? (void)0                                                                    \
               : cudasim::fail(cudasim::Fault::kAssertion, cudasim::Site::here(),           \
                               "assert(%s) does not hold", #condition))
#endif
