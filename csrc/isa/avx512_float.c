#define VARIANT fastopt_avx512_float
#define REAL_BITS 32
#include "../variant.h"
