#define VARIANT fastopt_avx2_float
#define REAL_BITS 32
#include "../variant.h"
