// Copies: from and into any layout, and from one element type to another.
#include "common/convert.cuh"
#include "common/view.cuh"

// y[i] = element i of x. By words of the elements' size: a copy does not look at what it moves.
KERNEL(gather, (T* y, const T* x, const View& vx, i64 n), u8, u16, u32, u64) {
    Operand<T, PACK<T>> from(x, vx);
    for_packs<PACK<T>>(y, n, from.in_packs(), [&](i64 i, auto& out) { from.read(i, out); });
}

// Element i of y = x[i]; the rest of y stays. No two elements of the view may lie in one place.
KERNEL(scatter, (T* y, const View& vy, const T* x, i64 n), u8, u16, u32, u64) {
    Operand<T, PACK<T>> to(y, vy);
    i64 packs = to.packed && aligned<T, PACK<T>>(x) ? n / PACK<T> : 0;
#pragma unroll 1
    for (i64 k = thread_index(); k < packs; k += thread_count()) {
        Pack<T, PACK<T>> p;
        p.load(x + k * PACK<T>);
        p.store(y + offset_of(vy, k * PACK<T>));
    }
#pragma unroll 1
    for (i64 i = packs * PACK<T> + thread_index(); i < n; i += thread_count()) y[offset_of(vy, i)] = x[i];
}

// y[i] = x[0].
KERNEL(fill, (T* y, const T* x, i64 n), u8, u16, u32, u64) {
    T one = x[0];
    for_packs<PACK<T>>(y, n, true, [&](i64, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = one;
    });
}

// y[i] = element i of x in the other type: as many elements at a time as the wider of the two types packs into 16 bytes.
KERNEL2(cast, (U* y, const T* x, const View& vx, i64 n), (f64, f32, bf16, f16, i64, u32, u8), (f64, f32, bf16, f16, i64, u32, u8)) {
    constexpr int N = PACK<T> < PACK<U> ? PACK<T> : PACK<U>;
    Operand<T, N> from(x, vx);
    for_packs<N>(y, n, from.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(U);
        T in[M];
        from.read(i, in);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = convert<U>(in[j]);
    });
}
