/* The windows of a convolution over images (n, h, w, c). */
#ifndef PATCHES_H
#define PATCHES_H

#include "../kernel.h"

struct patches {
    int64_t n, h, w, c, size_h, size_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

/* The windows that a kernel's arguments describe. */
#define PATCHES(a)                                                                                                     \
    {(a)->n,        (a)->h,        (a)->w,     (a)->c,     (a)->size_h,     (a)->size_w,                               \
     (a)->stride_h, (a)->stride_w, (a)->pad_h, (a)->pad_w, (a)->dilation_h, (a)->dilation_w}

#endif
