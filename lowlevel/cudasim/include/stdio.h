// The host's stdio.h, with printf as kernels have it (it arrives in Python's sys.stdout).
#ifdef CUDASIM
#undef printf
#endif
#include_next <stdio.h>
#ifdef CUDASIM  // not for the runner itself
#include <cudasim/runtime.h>
#define printf cudasim::device_printf
#endif
