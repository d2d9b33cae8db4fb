#define VARIANT fastopt_avx2_double
#define REAL_BITS 64
#include "../variant.h"
