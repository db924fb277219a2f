// Sums and means over axes.
//
// Math         y = (sum of x over the group) / divisor; the divisor of a sum is 1
// Mapping      common/lines.cuh
// Memory       x once, y once; 8 bytes per piece of a group that is cut
// Determinism  a tree whose shape is a function of x's shape
#include "common/moments.cuh"

// Into y, or into parts when groups are cut.
KERNEL(sum_reduce, (maybe<T*> y, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, acc<T> divisor),
       f64, f32, bf16, f16) {
    reduce_lines<Sums<acc<T>>>(x, outer, reduced, inner, pieces, lanes, [&](i64 group, i64 piece, acc<T> sum) {
        if (y) y[group] = store<T>(sum / divisor);
        else put_part(parts, group * pieces + piece, sum);
    });
}

// Of the pieces' parts; x tells the type.
KERNEL(sum_merge, (maybe<T*> y, maybe<u8*> merged, const u8* parts, const T* x, i64 groups, i64 pieces, acc<T> divisor), f64, f32, bf16, f16) {
    (void)x;
    merge_lines<Sums<acc<T>>>(parts, groups, pieces, [&](i64 group, acc<T> sum) {
        if (y) y[group] = store<T>(sum / divisor);
        else put_part(merged, group, sum);
    });
}
