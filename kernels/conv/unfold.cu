// Windows of planes as columns, and the sums of columns back into planes.
//
// Math         forward: y[plane, k, p] = x[plane, p stride - low + k dilation], 0 in the padding; back: the transpose
// Mapping      a thread per element of the result; planes are the images of a convolution of one channel
// Memory       forward: x once for each window that an element is in, mostly from the cache; y once. Back: y once, x once
// Determinism  every element belongs to one thread, which reads the kernel's elements in order; no atomics
#include "common/sliding.cuh"

KERNEL(unfold_forward, (T* y, const T* x, const Sliding& s, i64 n), f64, f32, bf16, f16) {
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        u64 left = u64(i), rest;
        i64 p[3], at = 0, extent = 1;
        bool inside = true;
#pragma unroll
        for (int a = 2; a >= 0; a--) {
            left = divided(left, u64(s.output[a]), rest);
            p[a] = i64(rest) * s.stride[a] - s.low[a];
        }
#pragma unroll
        for (int a = 2; a >= 0; a--) {
            left = divided(left, u64(s.kernel[a]), rest);
            const i64 q = p[a] + i64(rest) * s.dilation[a];
            inside = inside && q >= 0 && q < s.input[a];
            at += q * extent;
            extent *= s.input[a];
        }
        y[i] = inside ? x[i64(left) * extent + at] : store<T>(acc<T>(0));
    }
}

// The position of the output at which element k of the kernel meets position q of the input along an axis: none is -1.
DEVICE i64 meeting(const Sliding& s, int a, i64 q, i64 k) {
    const i64 left = q + s.low[a] - k * s.dilation[a];
    if (left < 0) return -1;
    u64 rest;
    const i64 p = i64(divided(u64(left), u64(s.stride[a]), rest));
    return rest == 0 && p < s.output[a] ? p : -1;
}

KERNEL(unfold_back, (T* x, const T* y, const Sliding& s, i64 n), f64, f32, bf16, f16) {
    const i64 positions = s.output[0] * s.output[1] * s.output[2], taps = s.kernel[0] * s.kernel[1] * s.kernel[2];
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        u64 left = u64(i), rest;
        i64 q[3];
#pragma unroll
        for (int a = 2; a >= 0; a--) {
            left = divided(left, u64(s.input[a]), rest);
            q[a] = i64(rest);
        }
        const T* from = y + i64(left) * taps * positions;
        acc<T> sum = acc<T>(0);
#pragma unroll 1
        for (i64 kz = 0; kz < s.kernel[0]; kz++) {
            const i64 z = meeting(s, 0, q[0], kz);
            if (z < 0) continue;
#pragma unroll 1
            for (i64 ky = 0; ky < s.kernel[1]; ky++) {
                const i64 h = meeting(s, 1, q[1], ky);
                if (h < 0) continue;
#pragma unroll 1
                for (i64 kx = 0; kx < s.kernel[2]; kx++) {
                    const i64 w = meeting(s, 2, q[2], kx);
                    if (w < 0) continue;
                    const i64 k = (kz * s.kernel[1] + ky) * s.kernel[2] + kx;
                    sum += load(from[k * positions + (z * s.output[1] + h) * s.output[2] + w]);
                }
            }
        }
        x[i] = store<T>(sum);
    }
}
