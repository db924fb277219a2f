// The index of the largest or smallest element of a line, and its value.
//
// Math         index = first position of the extremum, NaN beating numbers; value = x there
// Mapping      common/lines.cuh
// Memory       x once; 8 bytes per line
// Determinism  the first of equals wins whatever the order of joins
#include "common/lines.cuh"

template <class A, bool LARGEST> struct Position {
    typedef A X;
    struct Part {
        A value;
        u32 low, high;
        DEVICE i64 index() const { return i64(u64(high) << 32 | low); }
    };
    static DEVICE Part part(A value, i64 index) { return Part{value, u32(u64(index)), u32(u64(index) >> 32)}; }
    template <class T> static DEVICE A origin(T) { return A(0); }
    template <class T> static DEVICE A take(T v, A) { return load(v); }
    // Whether v takes the place of `best`, which stays among equals.
    static DEVICE bool beats(A v, A best) { return ((LARGEST ? v > best : v < best) || is_nan(v)) && !is_nan(best); }
    // No element: index -1.
    template <class P> static DEVICE Part start() { return part(A(0), -1); }
    static DEVICE Part join(Part a, Part b) {
        if (a.index() < 0) return b;
        if (b.index() < 0) return a;
        bool same = a.value == b.value || (is_nan(a.value) && is_nan(b.value));
        return beats(b.value, a.value) || (same && b.index() < a.index()) ? b : a;
    }
    template <int M> static DEVICE Part of(const A (&x)[M], i64 at, i64 step) {
        A best = x[0];
        i32 k = 0;
#pragma unroll
        for (int i = 1; i < M; i++) {
            bool better = beats(x[i], best);
            best = better ? x[i] : best;
            k = better ? i : k;
        }
        return part(best, at + k * step);
    }
};

template <bool LARGEST, class T>
DEVICE void arg_reduce(T* value, i64* index, u8* parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes) {
    typedef Position<acc<T>, LARGEST> R;
    reduce_lines<R>(x, outer, reduced, inner, pieces, lanes, [&](i64 line, i64 piece, const typename R::Part& p) {
        if (parts) return put_part(parts, line * pieces + piece, p);
        if (value) value[line] = store<T>(p.value);
        index[line] = p.index();
    });
}

template <bool LARGEST, class T> DEVICE void arg_merge(T* value, i64* index, const u8* parts, i64 lines, i64 pieces) {
    typedef Position<acc<T>, LARGEST> R;
    merge_lines<R>(parts, lines, pieces, [&](i64 line, const typename R::Part& p) {
        if (value) value[line] = store<T>(p.value);
        index[line] = p.index();
    });
}

// Into index and, if it is there, value; or into parts, when lines are cut.
KERNEL(argmax_reduce, (maybe<T*> value, maybe<i64*> index, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes,
                       i32 largest), f64, f32, bf16, f16) {
    if (largest) arg_reduce<true>(value, index, parts, x, outer, reduced, inner, pieces, lanes);
    else arg_reduce<false>(value, index, parts, x, outer, reduced, inner, pieces, lanes);
}

// Of the pieces' parts; x tells the type.
KERNEL(argmax_merge, (maybe<T*> value, i64* index, const u8* parts, const T* x, i64 lines, i64 pieces, i32 largest), f64, f32, bf16, f16) {
    (void)x;
    if (largest) arg_merge<true>(value, index, parts, lines, pieces);
    else arg_merge<false>(value, index, parts, lines, pieces);
}
