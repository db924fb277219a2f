// Reductions over warps and blocks. The order of additions depends on the number of threads alone: results repeat bit for bit.
#pragma once
#include "common/math.cuh"

struct SumOf {
    template <class A> static DEVICE A start() { return A(0); }
    template <class A> static DEVICE A join(A a, A b) { return a + b; }
};

// NaN wins, as in the elementwise maximum.
struct MaxOf {
    template <class A> static DEVICE A start() { return -Limits<A>::infinity(); }
    template <class A> static DEVICE A join(A a, A b) { return max_nan(a, b); }
};

struct MinOf {
    template <class A> static DEVICE A start() { return Limits<A>::infinity(); }
    template <class A> static DEVICE A join(A a, A b) { return min_nan(a, b); }
};

DEVICE i32 lane_index() { return i32(threadIdx.x % 32); }
DEVICE i32 warp_index() { return i32(threadIdx.x / 32); }
DEVICE i32 warp_count() { return i32((blockDim.x + 31) / 32); }

// Over groups of WIDTH neighbouring lanes (a power of two); every lane gets the result. All 32 lanes must take part.
template <class R, int WIDTH = 32, class A> DEVICE A warp_reduce(A v) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) v = R::join(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

// Over the block, whose size must be a multiple of 32; every thread gets the result. `partial` is shared memory for one
// value per warp, free again on return.
template <class R, class A> DEVICE A block_reduce(A v, A (&partial)[32]) {
    v = warp_reduce<R>(v);
    if (lane_index() == 0) partial[warp_index()] = v;
    __syncthreads();
    v = lane_index() < warp_count() ? partial[lane_index()] : R::template start<A>();
    v = warp_reduce<R>(v);
    __syncthreads();
    return v;
}
