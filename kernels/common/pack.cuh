// Several elements in one load or store of up to 16 bytes, and the walk over them.
#pragma once
#include "common/types.cuh"

// Machine words by size. Memory moves in these: the compiler may split a copy of a struct into single elements.
template <int BYTES> struct Word;
template <> struct Word<1> { typedef u8 type; };
template <> struct Word<2> { typedef u16 type; };
template <> struct Word<4> { typedef u32 type; };
template <> struct Word<8> { typedef u64 type; };
template <> struct Word<16> { typedef uint4 type; };

template <class T, int N> struct Pack {
    typedef typename Word<int(sizeof(T)) * N>::type Raw;
    union {
        Raw raw;
        T v[N];
    };
    DEVICE void load(const T* p) { raw = *reinterpret_cast<const Raw*>(p); }
    DEVICE void store(T* p) const { *reinterpret_cast<Raw*>(p) = raw; }
};

// Elements of T in 16 bytes.
template <class T> constexpr int PACK = 16 / int(sizeof(T));

// Whether N elements can be moved at once from here.
template <class T, int N> DEVICE bool aligned(const T* p) { return reinterpret_cast<u64>(p) % (sizeof(T) * N) == 0; }

// Elements can outnumber 32 bits: threads are counted in 64, and stride over what the grid does not cover.
DEVICE i64 thread_index() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }
DEVICE i64 thread_count() { return i64(gridDim.x) * blockDim.x; }

// y[i…] = f(i, out) for all i below n: f fills an array of N results, or of one: in the rest, or all along unless `in_packs`.
template <int N, class Y, class F> DEVICE void for_packs(Y* y, i64 n, bool in_packs, F f) {
    i64 packs = in_packs && aligned<Y, N>(y) ? n / N : 0;
#pragma unroll 1
    for (i64 k = thread_index(); k < packs; k += thread_count()) {
        Pack<Y, N> out;
        f(k * N, out.v);
        out.store(y + k * N);
    }
#pragma unroll 1
    for (i64 i = packs * N + thread_index(); i < n; i += thread_count()) {
        Y out[1];
        f(i, out);
        y[i] = out[0];
    }
}
