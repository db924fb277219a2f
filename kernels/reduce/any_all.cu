// Whether any or all elements of a mask are set.
//
// Math         y = 1 when any (`all` = 0) or every (`all` = 1) element of the group is not 0
// Mapping      common/lines.cuh
// Memory       a byte per element, a byte per group
// Determinism  whole numbers
#include "common/lines.cuh"

// Bit 0: an element is set; bit 1: an element is not.
struct Flags {
    typedef u32 Part;
    typedef u32 X;
    template <class P> static DEVICE u32 start() { return 0; }
    static DEVICE u32 join(u32 a, u32 b) { return a | b; }
    static DEVICE u32 origin(u8) { return 0; }
    static DEVICE u32 take(u8 v, u32) { return v ? 1 : 2; }
    template <int M> static DEVICE u32 of(const u32 (&x)[M], i64, i64) {
        u32 f = 0;
#pragma unroll
        for (int i = 0; i < M; i++) f |= x[i];
        return f;
    }
    static DEVICE u8 finish(u32 f, f64 all) { return u8(all != 0 ? !(f & 2) : f & 1); }
};

KERNEL(any_all_reduce, (maybe<T*> y, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, f64 all), u8) {
    reduce_lines<Flags>(x, outer, reduced, inner, pieces, lanes, [&](i64 group, i64 piece, u32 flags) {
        if (y) y[group] = Flags::finish(flags, all);
        else put_part(parts, group * pieces + piece, flags);
    });
}

// Of the pieces' parts; x tells the type.
KERNEL(any_all_merge, (maybe<T*> y, maybe<u8*> merged, const u8* parts, const T* x, i64 groups, i64 pieces, f64 all), u8) {
    (void)x;
    merge_lines<Flags>(parts, groups, pieces, [&](i64 group, u32 flags) {
        if (y) y[group] = Flags::finish(flags, all);
        else put_part(merged, group, flags);
    });
}
