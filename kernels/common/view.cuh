// Operands of any layout.
#pragma once
#include "common/pack.cuh"

// Element i (in row-major order) of an operand lies at the sum of its coordinates times the strides. The Rust struct of
// the same name has merged axes that follow one another in memory: what is contiguous has one axis, of stride 1.
struct View {
    i32 rank;
    i64 shape[8];
    i64 stride[8];
};
static_assert(sizeof(View) == 136, "as in src/backend/cuda/abi");

// Numbers that an elementwise op is made with.
struct Params {
    f64 p[4];
};
static_assert(sizeof(Params) == 32, "as in src/backend/cuda/abi");

// i divided by an extent. Every kernel has this several times, so it must be short: 64-bit division, a long subroutine, is done
// bit by bit. Only tensors beyond 2^32 elements get there.
DEVICE u64 divided(u64 i, u64 extent, u64& rest) {
    if (((i | extent) >> 32) == 0) {
        u32 q = u32(i) / u32(extent);
        rest = u32(i) - q * u32(extent);
        return q;
    }
    u64 q = 0, r = 0;
#pragma unroll 1
    for (i32 bit = 47; bit >= 0; bit--) {
        r = r << 1 | (i >> bit & 1);
        q <<= 1;
        if (r >= extent) r -= extent, q |= 1;
    }
    rest = r;
    return q;
}

// Where element i (below 2^48) lies.
DEVICE i64 offset_of(const View& v, i64 i) {
    if (v.rank == 0) return 0;
    i64 at = 0;
    u64 left = u64(i);
#pragma unroll 1
    for (i32 k = v.rank - 1; k > 0; k--) {
        u64 rest;
        left = divided(left, u64(v.shape[k]), rest);
        at += i64(rest) * v.stride[k];
    }
    return at + i64(left) * v.stride[0];
}

// An operand, read in packs of N where its layout allows it.
template <class T, int N> struct Operand {
    const T* x;
    const View& v;
    bool packed, repeated;

    DEVICE Operand(const T* x, const View& v) : x(x), v(v), packed(false), repeated(v.rank == 0) {
        if (v.rank == 0) return;
        // A pack must not straddle the end of the innermost axis, except where that axis is all there is.
        i64 inner = v.stride[v.rank - 1];
        bool whole = v.rank == 1 || v.shape[v.rank - 1] % N == 0;
        repeated = inner == 0 && whole;
        packed = inner == 1 && whole && aligned<T, N>(x);
#pragma unroll 1
        for (i32 k = 0; k + 1 < v.rank; k++) packed = packed && v.stride[k] % N == 0;
    }

    // Whether packs can be read at all; otherwise elements are read one by one.
    DEVICE bool in_packs() const { return packed || repeated; }

    DEVICE T at(i64 i) const { return x[offset_of(v, i)]; }

    // Elements i to i + M - 1; M is 1, or N with i divisible by N.
    template <int M> DEVICE void read(i64 i, T (&out)[M]) const {
        if (M == 1 || repeated) {
            T one = at(i);
#pragma unroll
            for (int j = 0; j < M; j++) out[j] = one;
        } else {
            Pack<T, M> p;
            p.load(x + offset_of(v, i));
#pragma unroll
            for (int j = 0; j < M; j++) out[j] = p.v[j];
        }
    }
};
