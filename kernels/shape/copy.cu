// Copies: from and into any layout, and from one element type to another.
#include "common/convert.cuh"
#include "common/view.cuh"

// y[i] = element i of x. By words of the elements' size: a copy does not look at what it moves.
KERNEL(gather, (T* y, const T* x, const View& vx, i64 n), u8, u16, u32, u64) {
    Operand<T, PACK<T>> from(x, vx);
    for_packs<PACK<T>>(y, n, from.in_packs(), [&](i64 i, auto& out) { from.read(i, out); });
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
