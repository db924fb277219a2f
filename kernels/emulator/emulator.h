// CUDA's words for a host compiler: what kernel sources may use, and no more. Include it before them.
//
// Whatever would be undefined on a GPU should fail here: shared memory starts as NaN, warp operations and barriers check who
// takes part, asynchronous copies come early or late, and memory ends at inaccessible pages. What cannot be seen here:
// the weak order of memory operations, the cost of anything, and rounding of the tensor cores' sums.
#pragma once
#define CUEMU 1

#include "async.h"
#include "launch.h"
#include <cmath>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

#define CUEMU_KERNEL(kernel)                                                                                          \
    extern "C" int cuemu_launch_##kernel(const unsigned* grid_block, size_t shared, unsigned order, void** params) {   \
        return ::cuemu::launch(#kernel, kernel, grid_block, shared, order, params);                                   \
    }

#define SMEM(type, name, extents)                          \
    static thread_local ::cuemu::SharedArray name##_array; \
    auto& name = *static_cast<type(*) extents>(name##_array.get(#name, sizeof(type extents)))
#define DYN_SMEM(type, name) type* name = static_cast<type*>(::cuemu::dynamic_shared())

#define threadIdx (::cuemu::thread->index)
#define blockIdx (::cuemu::block->index)
#define blockDim (::cuemu::block->launch->block)
#define gridDim (::cuemu::block->launch->grid)
#define warpSize 32

// The address of a variable of its own tells every place in the source apart.
#define CUEMU_SITE ([]() -> const void* { static const char here = 0; return &here; }())
#define __syncthreads() ::cuemu::barrier(CUEMU_SITE)
#define __syncwarp(...) (::cuemu::SyncWarp{CUEMU_SITE})(__VA_ARGS__)

struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) double2 { double x, y; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// ---- warp operations

namespace cuemu {

// Distinct for every operation; the address is the name.
template <int> struct Op {
    static inline const char name = 0;
};
enum { SHUFFLE, SHUFFLE_XOR, SHUFFLE_UP, SHUFFLE_DOWN, BALLOT, LDMATRIX, LDMATRIX_TRANSPOSED, MMA };

template <class A, int OP> void rendezvous_of(unsigned mask, A& argument, void (*carry_out)(void**, unsigned)) {
    rendezvous(mask, &argument, &Op<OP>::name, carry_out);
}

struct SyncWarp {
    const void* site;
    void operator()(unsigned mask = ~0u) const {
        char nothing = 0;
        rendezvous(mask, &nothing, site, [](void**, unsigned) {});
    }
};

template <class T> struct Shuffle {
    T in, out;
    unsigned from;
};

template <int OP, class T> T shuffle(unsigned mask, T value, unsigned from) {
    Shuffle<T> mine{value, value, from};
    rendezvous_of<Shuffle<T>, OP>(mask, mine, [](void** lanes, unsigned m) {
        for (unsigned rest = m; rest; rest &= rest - 1) {
            auto* to = static_cast<Shuffle<T>*>(lanes[__builtin_ctz(rest)]);
            // What a lane outside of the mask holds is undefined.
            if (m >> to->from & 1) to->out = static_cast<Shuffle<T>*>(lanes[to->from])->in;
            else memset(&to->out, 0xff, sizeof(T));
        }
    });
    return mine.out;
}

struct Ballot {
    int predicate;
    unsigned out;
};

struct MatrixRow {
    const void* row;
    unsigned* r;
};

// The warp's four 8 x 8 matrices of 16-bit elements: lane l names row l % 8 of matrix l / 8.
template <int OP> void load_matrices(unsigned (&r)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16) fail("a row of ldmatrix is not aligned to 16 bytes");
    MatrixRow mine{row, r};
    rendezvous_of<MatrixRow, OP>(0xffffffffu, mine, [](void** lanes, unsigned) {
        uint16_t m[4][8][8];
        for (int l = 0; l < 32; l++) memcpy(m[l / 8][l % 8], static_cast<MatrixRow*>(lanes[l])->row, 16);
        for (int l = 0; l < 32; l++) {
            for (int i = 0; i < 4; i++) {
                int a = l / 4, b = l % 4 * 2;
                unsigned low = OP == LDMATRIX ? m[i][a][b] : m[i][b][a], high = OP == LDMATRIX ? m[i][a][b + 1] : m[i][b + 1][a];
                static_cast<MatrixRow*>(lanes[l])->r[i] = low | high << 16;
            }
        }
    });
}

} // namespace cuemu

template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
    unsigned base = cuemu::thread->lane & ~unsigned(width - 1);
    return cuemu::shuffle<cuemu::SHUFFLE>(mask, v, base + (unsigned(from) & unsigned(width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
    unsigned lane = cuemu::thread->lane, from = lane ^ unsigned(bits), group = ~unsigned(width - 1);
    return cuemu::shuffle<cuemu::SHUFFLE_XOR>(mask, v, (from & group) <= (lane & group) ? from : lane);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
    unsigned lane = cuemu::thread->lane, from = lane + by, group = ~unsigned(width - 1);
    return cuemu::shuffle<cuemu::SHUFFLE_DOWN>(mask, v, (from & group) == (lane & group) ? from : lane);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
    int lane = int(cuemu::thread->lane), from = lane - int(by);
    return cuemu::shuffle<cuemu::SHUFFLE_UP>(mask, v, unsigned(from >= (lane & ~(width - 1)) ? from : lane));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    cuemu::Ballot mine{predicate, 0};
    cuemu::rendezvous_of<cuemu::Ballot, cuemu::BALLOT>(mask, mine, [](void** lanes, unsigned m) {
        unsigned votes = 0;
        for (unsigned rest = m; rest; rest &= rest - 1) {
            unsigned lane = __builtin_ctz(rest);
            votes |= unsigned(static_cast<cuemu::Ballot*>(lanes[lane])->predicate != 0) << lane;
        }
        for (unsigned rest = m; rest; rest &= rest - 1) static_cast<cuemu::Ballot*>(lanes[__builtin_ctz(rest)])->out = votes;
    });
    return mine.out;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

// ---- atomics: blocks run on several host threads. None on floats: their sums would depend on the order.

template <class T> T atomicAdd(T* p, T v) {
    static_assert(std::is_integral_v<T>, "sums of floats must not depend on the order of threads");
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class T> T atomicCAS(T* p, T expected, T desired) {
    __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <class T> T atomicMax(T* p, T v) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}
template <class T> T atomicMin(T* p, T v) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (v < old && !__atomic_compare_exchange_n(p, &old, v, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return old;
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() {}

// ---- bits

template <class To, class From> inline To cuemu_bits(From x) {
    static_assert(sizeof(To) == sizeof(From), "");
    To y;
    memcpy(&y, &x, sizeof y);
    return y;
}
inline unsigned __float_as_uint(float x) { return cuemu_bits<unsigned>(x); }
inline int __float_as_int(float x) { return cuemu_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return cuemu_bits<float>(x); }
inline float __int_as_float(int x) { return cuemu_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuemu_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuemu_bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)(a) * b >> 32); }
template <class T> inline T __ldg(const T* p) { return *p; }
inline void __trap() { cuemu::fail("__trap"); }
