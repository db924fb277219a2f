// Comparisons: masks of 0 and 1. Floats compare in the type they are computed in, integers exactly.
#include "common/convert.cuh"
#include "common/view.cuh"

// The order of `Relation` in src/ops/elementwise/compare.rs.
enum Relation { EQUAL, NOT_EQUAL, LESS, AT_MOST, GREATER, AT_LEAST, TAKEN };

template <class A> DEVICE bool holds(i32 relation, A a, A b) {
    switch (relation) {
    case EQUAL: return a == b;
    case NOT_EQUAL: return a != b;
    case LESS: return a < b;
    case AT_MOST: return a <= b;
    case GREATER: return a > b;
    case AT_LEAST: return a >= b;
    default: return a == b || a != a; // NaN too
    }
}

KERNEL(compare, (u8* y, const T* a, const View& va, const T* b, const View& vb, i32 relation, i64 n), f64, f32, bf16, f16, i64, u32, u8) {
    constexpr int N = PACK<T>;
    Operand<T, N> lhs(a, va), rhs(b, vb);
    for_packs<N>(y, n, lhs.in_packs() && rhs.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out);
        T p[M], q[M];
        lhs.read(i, p);
        rhs.read(i, q);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = u8(holds(relation, load(p[j]), load(q[j])));
    });
}

// What elements of T are compared with: c rounded to the type that T is computed in.
template <class T, bool FLOAT = IsFloat<T>::value> struct Threshold {
    acc<T> c;
    DEVICE explicit Threshold(f64 c) : c(acc<T>(c)) {}
    DEVICE bool passes(i32 relation, T x) const { return holds(relation, load(x), c); }
};

// Integers compare exactly: with c itself if the type has it, else as doubles, for rounding to double does not cross c.
// 2^63 itself saturates although it converts back equal.
template <class T> struct Threshold<T, false> {
    f64 c;
    i64 whole;
    bool exact;
    DEVICE explicit Threshold(f64 c) : c(c), whole(load(Whole<T>::of(c))), exact(f64(whole) == c && whole != load(Whole<T>::max())) {}
    DEVICE bool passes(i32 relation, T x) const { return exact ? holds(relation, load(x), whole) : holds(relation, f64(load(x)), c); }
};

KERNEL(compare_scalar, (u8* y, const T* x, const View& vx, f64 c, i32 relation, i64 n), f64, f32, bf16, f16, i64, u32, u8) {
    constexpr int N = PACK<T>;
    Operand<T, N> from(x, vx);
    Threshold<T> threshold(c);
    for_packs<N>(y, n, from.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out);
        T p[M];
        from.read(i, p);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = u8(threshold.passes(relation, p[j]));
    });
}

// ---- logic on masks: any value but 0 is true

KERNEL0(compare_not, (u8* y, const u8* x, const View& vx, i64 n)) {
    Operand<u8, 16> from(x, vx);
    for_packs<16>(y, n, from.in_packs(), [&](i64 i, auto& out) {
        from.read(i, out);
#pragma unroll
        for (int j = 0; j < int(sizeof(out)); j++) out[j] = u8(out[j] == 0);
    });
}

// Both (`all` not 0), or at least one.
KERNEL0(compare_both, (u8* y, const u8* a, const View& va, const u8* b, const View& vb, i32 all, i64 n)) {
    Operand<u8, 16> lhs(a, va), rhs(b, vb);
    for_packs<16>(y, n, lhs.in_packs() && rhs.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out);
        u8 p[M], q[M];
        lhs.read(i, p);
        rhs.read(i, q);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = u8(all ? (p[j] && q[j]) : (p[j] || q[j]));
    });
}
