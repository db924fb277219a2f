// Dropout with the mask of src/rng.rs: element i is kept where word i of the key's stream lies below the threshold.
#include "common/philox.cuh"
#include "common/view.cuh"

// y = x * scale where kept, else 0. seed and stream are Key::parts(); a captured step reads them from device memory instead.
KERNEL(dropout,
       (T* y, const T* x, const View& vx, u64 seed, u64 stream, maybe<const i64*> live, u64 threshold, acc<T> scale, i64 n),
       f64, f32, bf16, f16) {
    Operand<T, PACK<T>> from(x, vx);
    const Key key = current_key(seed, stream, live);
    for_packs<PACK<T>>(y, n, from.in_packs(), [&](i64 i, auto& out) {
        constexpr int M = sizeof(out) / sizeof(T);
        T in[M];
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
    });
}
