#define VARIANT fastopt_baseline_double
#define REAL_BITS 64
#include "../variant.h"
