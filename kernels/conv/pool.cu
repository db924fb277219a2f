// The largest element of each window.
//
// Math         y = max of x over a window, and where in its plane: the first of equals, the first NaN where there is one
// Mapping      a thread per output; images are planes
// Memory       x once for each window that an element is in, mostly from the cache; y and places once
// Determinism  every output belongs to one thread, which reads its window in order
#include "common/sliding.cuh"

KERNEL(pool_max, (T* y, i64* at, const T* x, const Sliding& s, i64 n), f64, f32, bf16, f16) {
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        u64 left = u64(i), rest;
        i64 p[3];
#pragma unroll
        for (int a = 2; a >= 0; a--) {
            left = divided(left, u64(s.output[a]), rest);
            p[a] = i64(rest) * s.stride[a] - s.low[a];
        }
        const T* plane = x + i64(left) * s.input[0] * s.input[1] * s.input[2];
        i64 place = -1;
        acc<T> best = acc<T>(0);
#pragma unroll 1
        for (i64 kz = 0; kz < s.kernel[0]; kz++) {
            const i64 z = p[0] + kz * s.dilation[0];
            if (z < 0 || z >= s.input[0]) continue;
#pragma unroll 1
            for (i64 ky = 0; ky < s.kernel[1]; ky++) {
                const i64 h = p[1] + ky * s.dilation[1];
                if (h < 0 || h >= s.input[1]) continue;
#pragma unroll 1
                for (i64 kx = 0; kx < s.kernel[2]; kx++) {
                    const i64 w = p[2] + kx * s.dilation[2];
                    if (w < 0 || w >= s.input[2]) continue;
                    const i64 here = (z * s.input[1] + h) * s.input[2] + w;
                    const acc<T> v = load(plane[here]);
                    if (place < 0 || v > best || (v != v && best == best)) best = v, place = here;
                }
            }
        }
        y[i] = store<T>(best);
        at[i] = place;
    }
}
