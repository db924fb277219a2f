// Reductions whose derivative needs the whole group again, as in src/ops/reduce/group: product, extrema, logsumexp, variance,
// standard deviation, Euclidean norm.
//
// Math         y = R::finish(part of the group), x_bar = R::pull(x, part of its group, y_bar of its group): common/moments.cuh
// Mapping      reduce, merge: common/lines.cuh; vjp: a thread per 16 bytes, once the parts of all groups are in memory
// Memory       forward x once; derivative x twice (the second time from the cache if it fits), y_bar, and up to 32 bytes per group
// Determinism  a tree whose shape is a function of x's shape
#include "common/moments.cuh"

template <class R, class T>
DEVICE void group_reduce(T* y, u8* parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, f64 p) {
    reduce_lines<R>(x, outer, reduced, inner, pieces, lanes, [&](i64 group, i64 piece, const typename R::Part& part) {
        if (y) y[group] = store<T>(R::finish(part, p));
        else put_part(parts, group * pieces + piece, part);
    });
}

template <class R, class T> DEVICE void group_merge(const T*, T* y, u8* merged, const u8* parts, i64 groups, i64 pieces, f64 p) {
    merge_lines<R>(parts, groups, pieces, [&](i64 group, const typename R::Part& part) {
        if (y) y[group] = store<T>(R::finish(part, p));
        else put_part(merged, group, part);
    });
}

template <class R, class T>
DEVICE void group_vjp(T* y, const T* x, const T* g, const u8* parts, i64 n, i64 reduced, i64 inner, f64 p) {
    spread_lines<R>(y, x, g, parts, n, reduced, inner, [&](typename R::X x, const typename R::Part& part, acc<T> g) { return R::pull(x, part, g, p); });
}

KERNEL(prod_reduce, (maybe<T*> y, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, f64 p),
       f64, f32, bf16, f16) {
    group_reduce<Factors<acc<T>>>(y, parts, x, outer, reduced, inner, pieces, lanes, p);
}
KERNEL(prod_merge, (maybe<T*> y, maybe<u8*> merged, const u8* parts, const T* x, i64 groups, i64 pieces, f64 p), f64, f32, bf16, f16) {
    group_merge<Factors<acc<T>>>(x, y, merged, parts, groups, pieces, p);
}
KERNEL(prod_vjp, (T* y, const T* x, const T* g, const u8* parts, i64 n, i64 reduced, i64 inner, f64 p), f64, f32, bf16, f16) {
    group_vjp<Factors<acc<T>>>(y, x, g, parts, n, reduced, inner, p);
}

KERNEL(max_reduce, (maybe<T*> y, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, f64 p),
       f64, f32, bf16, f16) {
    group_reduce<Ties<acc<T>, true>>(y, parts, x, outer, reduced, inner, pieces, lanes, p);
}
KERNEL(max_merge, (maybe<T*> y, maybe<u8*> merged, const u8* parts, const T* x, i64 groups, i64 pieces, f64 p), f64, f32, bf16, f16) {
    group_merge<Ties<acc<T>, true>>(x, y, merged, parts, groups, pieces, p);
}
KERNEL(max_vjp, (T* y, const T* x, const T* g, const u8* parts, i64 n, i64 reduced, i64 inner, f64 p), f64, f32, bf16, f16) {
    group_vjp<Ties<acc<T>, true>>(y, x, g, parts, n, reduced, inner, p);
}

KERNEL(min_reduce, (maybe<T*> y, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, f64 p),
       f64, f32, bf16, f16) {
    group_reduce<Ties<acc<T>, false>>(y, parts, x, outer, reduced, inner, pieces, lanes, p);
}
KERNEL(min_merge, (maybe<T*> y, maybe<u8*> merged, const u8* parts, const T* x, i64 groups, i64 pieces, f64 p), f64, f32, bf16, f16) {
    group_merge<Ties<acc<T>, false>>(x, y, merged, parts, groups, pieces, p);
}
KERNEL(min_vjp, (T* y, const T* x, const T* g, const u8* parts, i64 n, i64 reduced, i64 inner, f64 p), f64, f32, bf16, f16) {
    group_vjp<Ties<acc<T>, false>>(y, x, g, parts, n, reduced, inner, p);
}

KERNEL(logsumexp_reduce, (maybe<T*> y, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, f64 p),
       f64, f32, bf16, f16) {
    group_reduce<LogSum<acc<T>>>(y, parts, x, outer, reduced, inner, pieces, lanes, p);
}
KERNEL(logsumexp_merge, (maybe<T*> y, maybe<u8*> merged, const u8* parts, const T* x, i64 groups, i64 pieces, f64 p), f64, f32, bf16, f16) {
    group_merge<LogSum<acc<T>>>(x, y, merged, parts, groups, pieces, p);
}
KERNEL(logsumexp_vjp, (T* y, const T* x, const T* g, const u8* parts, i64 n, i64 reduced, i64 inner, f64 p), f64, f32, bf16, f16) {
    group_vjp<LogSum<acc<T>>>(y, x, g, parts, n, reduced, inner, p);
}

KERNEL(var_reduce, (maybe<T*> y, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, f64 p),
       f64, f32, bf16, f16) {
    group_reduce<Variance<acc<T>>>(y, parts, x, outer, reduced, inner, pieces, lanes, p);
}
KERNEL(var_merge, (maybe<T*> y, maybe<u8*> merged, const u8* parts, const T* x, i64 groups, i64 pieces, f64 p), f64, f32, bf16, f16) {
    group_merge<Variance<acc<T>>>(x, y, merged, parts, groups, pieces, p);
}
KERNEL(var_vjp, (T* y, const T* x, const T* g, const u8* parts, i64 n, i64 reduced, i64 inner, f64 p), f64, f32, bf16, f16) {
    group_vjp<Variance<acc<T>>>(y, x, g, parts, n, reduced, inner, p);
}

KERNEL(std_reduce, (maybe<T*> y, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, f64 p),
       f64, f32, bf16, f16) {
    group_reduce<Deviation<acc<T>>>(y, parts, x, outer, reduced, inner, pieces, lanes, p);
}
KERNEL(std_merge, (maybe<T*> y, maybe<u8*> merged, const u8* parts, const T* x, i64 groups, i64 pieces, f64 p), f64, f32, bf16, f16) {
    group_merge<Deviation<acc<T>>>(x, y, merged, parts, groups, pieces, p);
}
KERNEL(std_vjp, (T* y, const T* x, const T* g, const u8* parts, i64 n, i64 reduced, i64 inner, f64 p), f64, f32, bf16, f16) {
    group_vjp<Deviation<acc<T>>>(y, x, g, parts, n, reduced, inner, p);
}

KERNEL(norm_reduce, (maybe<T*> y, maybe<u8*> parts, const T* x, i64 outer, i64 reduced, i64 inner, i64 pieces, i32 lanes, f64 p),
       f64, f32, bf16, f16) {
    group_reduce<SquareSum<acc<T>>>(y, parts, x, outer, reduced, inner, pieces, lanes, p);
}
KERNEL(norm_merge, (maybe<T*> y, maybe<u8*> merged, const u8* parts, const T* x, i64 groups, i64 pieces, f64 p), f64, f32, bf16, f16) {
    group_merge<SquareSum<acc<T>>>(x, y, merged, parts, groups, pieces, p);
}
KERNEL(norm_vjp, (T* y, const T* x, const T* g, const u8* parts, i64 n, i64 reduced, i64 inner, f64 p), f64, f32, bf16, f16) {
    group_vjp<SquareSum<acc<T>>>(y, x, g, parts, n, reduced, inner, p);
}
