#define VARIANT fastopt_avx512_double
#define REAL_BITS 64
#include "../variant.h"
