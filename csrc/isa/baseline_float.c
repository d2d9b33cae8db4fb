#define VARIANT fastopt_baseline_float
#define REAL_BITS 32
#include "../variant.h"
