// Attention on tensor cores (sm_80 and later): bf16 and f16, rows of up to 128 elements, without a mask or dropout.
//
// Math: y = softmax(scale q k^T) v, causal or not, as in sdpa.cu. Sums and the softmax are float; weights are rounded to the
// operands' type before they meet v.
// Mapping: a block owns 128 queries of a head and goes through the keys it sees in tiles of 64, the last ones first. A warp owns
// 16 or 32 of the queries, with all keys and all columns: softmax and sums need no other warp. Scores leave the product in
// the layout in which weights enter the next. Blocks of late queries, which see the most keys when causal, start first.
// Memory: queries once; keys and values by asynchronous copies, two tiles each, one barrier a tile; results leave through the
// queries' place, 16 bytes at a time. 24 KiB of shared memory for every 32 columns: 96 at most, cards of 8.6 and 8.9 have 99.
// Aliasing: none.
// Determinism: every sum belongs to one warp and runs in a fixed order; no atomics.
// Keys of weight 0 that hold NaN or infinity spoil sums here (0 * NaN): results that are not finite are noted in `notes`, and
// computed again by sdpa_forward, which leaves such keys out.
// Tried (registers by NVRTC 13.0; nothing has been timed): 32 rows a warp halve what is read from shared memory for a product, which
// with 16 rows is all that an A100 can read. 64 columns: 4 warps of 32 rows, two blocks a multiprocessor; 8 warps of 16 spill at
// the 128 registers that two such blocks leave on sm_80. 128 columns: 8 warps of 16 rows, 196 registers; 4 of 32 spill 104 bytes.
// Queries held in registers save a third of the reads for scores with 16 rows, and do not fit with 32. Weights as the sum of two
// rounded numbers would be as exact as float, for half as much work again on values: left out, as everywhere else.
#include "common/flash.cuh"

template <class T, int W, int WARPS, int MT>
DEVICE void attend(T* y, u8* notes, const T* q, const T* k, const T* v, const Flash& p) {
    constexpr int M = 16 * MT * WARPS, N = 64, NT = N / 8, THREADS = 32 * WARPS;
    DYN_SMEM(T, queries);
    T* stages = queries + M * W;
    int own = warp_index() * 16 * MT;
    i64 tiles = (p.tq + M - 1) / M;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < p.heads * tiles; item += gridDim.x) {
        i64 i0 = (tiles - 1 - item / p.heads) * M, head = item % p.heads;
        const KeyTiles<T, W, N, THREADS> fetch_keys(stages, k, v, p, head);
        const Walk<N> walk(p, i0, M);
        // Of the block's last item.
        __syncthreads();
        fetch<W, M, THREADS>(queries, q + offset_of(p.q.lead, head), p.q.row, i0, p.tq, p.d);
        if (walk.first < walk.end) fetch_keys(walk.end - 1, 0);
        copy_commit();
        f32 o[MT][W / 8][4], m[MT][2], l[MT][2];
        bool finite[MT];
        clear(o);
#pragma unroll
        for (int t = 0; t < MT; t++) {
            finite[t] = true;
            m[t][0] = m[t][1] = -Limits<f32>::infinity();
            l[t][0] = l[t][1] = 0.0f;
        }
#pragma unroll 1
        for (int tile = walk.end - 1; tile >= walk.first; tile--) {
            int stage = (walk.end - 1 - tile) % 2;
            copy_wait<0>();
            __syncthreads();
            if (tile > walk.first) fetch_keys(tile - 1, 1 - stage);
            copy_commit();
            // Not seen by this warp's queries, but perhaps by another's.
            if (apart(p, i0 + own, 16 * MT, i64(tile) * N, N)) continue;
            const T* now = stages + stage * 2 * N * W;
            f32 s[MT][NT][4];
            multiply_transposed<T, W>(queries, own, now, s);
            if (walk.hides(tile)) hide(p, i0 + own, i64(tile) * N, s);
#pragma unroll
            for (int t = 0; t < MT; t++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    f32 factor = advance(p, f32(Range<T>::SHIFT), t, h, s, m[t][h], l[t][h]);
#pragma unroll
                    for (int n = 0; n < W / 8; n++) o[t][n][2 * h] *= factor, o[t][n][2 * h + 1] *= factor;
                }
            multiply_add<T, W>(s, now + N * W, o);
        }
        // Where there was no tile, the queries are still on their way.
        copy_wait<0>();
        __syncthreads();
#pragma unroll
        for (int t = 0; t < MT; t++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                f32 sum = warp_reduce<SumOf, 4>(l[t][h]);
                l[t][h] = sum == 0.0f ? 0.0f : 1.0f / sum;
            }
        put<T, W>(queries, own, o, l, y, head, i0 + own, p.tq, p.dv, finite);
        note(notes, p.left_out, head, i0 + own, p.tq, finite);
    }
}

LAUNCH_BOUNDS(128, 2)
KERNEL(sdpa_mma_forward_32, (T* y, u8* notes, const T* q, const T* k, const T* v, const Flash& p), bf16, f16) { attend<T, 32, 4, 2>(y, notes, q, k, v, p); }

LAUNCH_BOUNDS(128, 2)
KERNEL(sdpa_mma_forward_64, (T* y, u8* notes, const T* q, const T* k, const T* v, const Flash& p), bf16, f16) { attend<T, 64, 4, 2>(y, notes, q, k, v, p); }

LAUNCH_BOUNDS(256, 1)
KERNEL(sdpa_mma_forward_96, (T* y, u8* notes, const T* q, const T* k, const T* v, const Flash& p), bf16, f16) { attend<T, 96, 8, 1>(y, notes, q, k, v, p); }

LAUNCH_BOUNDS(256, 1)
KERNEL(sdpa_mma_forward_128, (T* y, u8* notes, const T* q, const T* k, const T* v, const Flash& p), bf16, f16) { attend<T, 128, 8, 1>(y, notes, q, k, v, p); }
