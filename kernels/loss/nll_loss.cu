// Negative log-likelihood of class targets.
//
// Math: loss_i = -w_y x_{i,y}; its derivative is -w_y g_i at the target and 0 elsewhere, with g divided by the weight of a mean.
// Mapping: one thread per target forward; 16 bytes of the result per thread backward.
// Memory: reads one number per row in whatever layout; the derivative writes the whole of its result.
// Determinism: no element depends on another.
#include "common/math.cuh"
#include "common/view.cuh"

// Writes y if `each` loss is wanted, else `losses`.
KERNEL(nll_loss_fwd, (T* y, maybe<acc<T>*> losses, const T* x, const View& vx, const i64* of, maybe<const T*> w, i64 n, i64 classes),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) {
        i64 t = of[i];
        A loss = A(0);
        if (t >= 0) loss = -(load(x[offset_of(vx, i * classes + t)]) * (w ? load(w[t]) : A(1)));
        if (losses) losses[i] = loss;
        else y[i] = store<T>(loss);
    }
}

KERNEL(nll_loss_vjp, (T* y, const i64* of, maybe<const T*> w, const f64* weight, const T* g, i64 n, i64 classes, i32 each, i32 mean),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    A scale = A(!mean ? 1 : weight[0] == 0 ? 0 : 1 / weight[0]);
    for_packs<PACK<T>>(y, n, true, [&](i64 at, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        u64 rest;
        i64 i = i64(divided(u64(at), u64(classes), rest)), j = i64(rest);
#pragma unroll
        for (int k = 0; k < M; k++) {
            i64 t = of[i];
            out[k] = store<T>(t == j ? -((w ? load(w[t]) : A(1)) * load(g[each ? i : 0]) * scale) : A(0));
            if (++j == classes) {
                j = 0;
                // The last pack may end with the last row.
                i += at + k + 1 < n;
            }
        }
    });
}
