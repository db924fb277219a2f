// Operands of any layout.
#pragma once
#include "common/pack.cuh"

// Element i (in row-major order) of an operand lies at the sum of its coordinates times the strides. The Rust struct of
// the same name has merged axes that lie one behind the other: what is contiguous has one axis, of stride 1.
struct View {
    i32 rank;
    i64 shape[8];
    i64 stride[8];
};

// Numbers that an elementwise op is made with.
struct Params {
    f64 p[4];
};

template <class I> DEVICE i64 offset_in(const View& v, I i) {
    i64 at = 0;
#pragma unroll 1
    for (i32 k = v.rank - 1; k > 0; k--) {
        I extent = I(v.shape[k]), next = i / extent;
        at += i64(i - next * extent) * v.stride[k];
        i = next;
    }
    return v.rank > 0 ? at + i64(i) * v.stride[0] : 0;
}

// Where element i lies. Division of 64 bits takes several times as long as of 32: `small` says that indices fit.
DEVICE i64 offset_of(const View& v, i64 i, bool small) { return small ? offset_in<u32>(v, u32(i)) : offset_in<u64>(v, u64(i)); }

// An operand of n elements, read in packs of N where its layout allows it.
template <class T, int N> struct Operand {
    const T* x;
    const View& v;
    bool small, packed, repeated;

    DEVICE Operand(const T* x, const View& v, i64 n) : x(x), v(v), small(n <= 0x7fffffff), packed(false), repeated(v.rank == 0) {
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

    DEVICE T at(i64 i) const { return x[offset_of(v, i, small)]; }

    // Elements i to i + M - 1; M is 1, or N with i divisible by N.
    template <int M> DEVICE void read(i64 i, T (&out)[M]) const {
        if (M == 1 || repeated) {
            T one = at(i);
#pragma unroll
            for (int j = 0; j < M; j++) out[j] = one;
        } else {
            Pack<T, M> p;
            p.load(x + offset_of(v, i, small));
#pragma unroll
            for (int j = 0; j < M; j++) out[j] = p.v[j];
        }
    }
};
