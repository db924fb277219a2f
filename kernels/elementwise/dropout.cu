// Dropout with the mask of src/rng.rs, and perhaps the residual connection that follows it.
//
// Math         y = x * scale where word i of the key's stream lies below the threshold, else 0; plus r if there is one
// Mapping      a thread takes 16 bytes at a time: whole blocks of the generator, except at the end
// Memory       reads x (and r), writes y; the mask is never stored
// Aliasing     y is fresh memory; x and r may be one tensor
// Determinism  element i depends on key and i alone
// Tried        not yet timed on a GPU
#include "common/philox.cuh"
#include "common/view.cuh"

// y = x * scale where kept, else 0. seed and stream are Key::parts(); a captured step reads them from device memory instead.
KERNEL(dropout,
       (T* y, const T* x, const View& vx, maybe<const T*> r, const View& vr, u64 seed, u64 stream, maybe<const i64*> live, u64 threshold, acc<T> scale, i64 n),
       f64, f32, bf16, f16) {
    Operand<T, PACK<T>> from(x, vx), residual(r, vr);
    const Key key = current_key(seed, stream, live);
    for_packs<PACK<T>>(y, n, from.in_packs() && (!r || residual.in_packs()), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        T in[M], other[M];
        from.read(i, in);
        u32 words[M];
        if (M >= 4) {
            // i is divisible by M: whole blocks of the generator.
#pragma unroll
            for (int b = 0; b < M / 4; b++) {
                Words w = random_block(key, u64(i) / 4 + b);
#pragma unroll
                for (int j = 0; j < 4; j++) words[4 * b + j] = w.w[j];
            }
        } else {
#pragma unroll
            for (int j = 0; j < M; j++) words[j] = random_word(key, u64(i) + j);
        }
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = store<T>(u64(words[j]) < threshold ? load(in[j]) * scale : acc<T>(0));
        if (!r) return;
        residual.read(i, other);
#pragma unroll
        for (int j = 0; j < M; j++) out[j] = store<T>(load(other[j]) + (u64(words[j]) < threshold ? load(in[j]) * scale : acc<T>(0)));
    });
}
