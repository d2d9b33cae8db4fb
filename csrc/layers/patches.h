/* The windows of a convolution over images (n, h, w, c). */
#ifndef PATCHES_H
#define PATCHES_H

struct patches {
    int64_t n, h, w, c, size_h, size_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

/* How many places a window has in an image of this length. */
static int64_t places(int64_t length, int64_t size, int64_t stride, int64_t pad, int64_t dilation)
{
    return (length + 2 * pad - dilation * (size - 1) - 1) / stride + 1;
}

#endif
