// Reductions over warps, parts of warps, and blocks. The order of joins depends on the number of threads alone: results
// repeat bit for bit.
//
// A reduction R has `start<P>()`, a value that changes nothing, and `join(a, b)`. P is a number, or a struct of numbers
// without constructors. Where join(a, b) and join(b, a) round differently, lanes end with results that differ in the last
// bits: then only lane 0's counts.
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

// What the lane whose index differs in the bits of `step` holds; any struct of words. All 32 lanes must take part.
template <class P> DEVICE P shuffle_xor(P v, int step) {
#ifdef CUEMU
    return __shfl_xor_sync(0xffffffffu, v, step);
#else
    static_assert(sizeof(P) % 4 == 0, "lanes exchange words");
    union {
        P p;
        u32 w[sizeof(P) / 4];
    } x;
    x.p = v;
#pragma unroll
    for (int i = 0; i < int(sizeof(P) / 4); i++) x.w[i] = __shfl_xor_sync(0xffffffffu, x.w[i], step);
    return x.p;
#endif
}

// Over groups of WIDTH neighbouring lanes (a power of two); every lane gets the result. All 32 lanes must take part.
template <class R, int WIDTH = 32, class A> DEVICE A warp_reduce(A v) {
#pragma unroll
    for (int step = WIDTH / 2; step > 0; step /= 2) v = R::join(v, shuffle_xor(v, step));
    return v;
}

// The same for a width of up to 32 that is known at run time only.
template <class R, class A> DEVICE A lanes_reduce(A v, i32 width) {
#pragma unroll 1
    for (i32 step = width / 2; step > 0; step /= 2) v = R::join(v, shuffle_xor(v, step));
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

// Over a team of neighbouring threads: 1, 2, 4, 8, 16 or 32 lanes, or else the whole block. Every thread of every team must
// take part.
template <class R, class A> DEVICE A team_reduce(A v, i32 team, A (&partial)[32]) {
    return team <= 32 ? lanes_reduce<R>(v, team) : block_reduce<R>(v, partial);
}
