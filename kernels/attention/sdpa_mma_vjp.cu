// The derivative of attention on tensor cores: bf16 and f16, rows of up to 128 elements, without a mask or dropout.
//
// Math: as in sdpa.cu: P = softmax(scale q k^T), dP = g v^T, dS = P (dP - sum P dP), dq = scale dS k, dk = scale dS^T q,
// dv = P^T g. Sums and P, dP, dS are float; P and dS are rounded to the operands' type before they meet g, q and k. For f16, dS
// of a key head is multiplied by a power of two first, by a bound that `stats` finds: |dS| <= max P |dP| + |sum P dP| max P.
// Mapping: `stats` finds maximum, sum and sum P dP of every query; `rows` owns 128 queries and goes through the keys they see;
// `columns` owns 128 keys and goes through the queries (of all heads of the group, in order) that see them. A warp owns 16 or
// 32 rows of the result. `columns` computes scores transposed, keys as rows: weights then leave one product in the layout in
// which they enter the next, and none pass through shared memory.
// Memory: what a block owns once; the others by asynchronous copies, two tiles each, one barrier a tile. Nothing of the size of
// the scores. 24 KiB of shared memory for every 32 columns, at most 96.5: cards of 8.6 and 8.9 have 99.
// Aliasing: none.
// Determinism: every sum belongs to one warp and runs in a fixed order; atomically there is a maximum only.
// Results that are not finite are noted, and computed again by sdpa_rows and sdpa_columns: see sdpa_mma.cu.
// Tried (registers by NVRTC 13.0; nothing has been timed): one kernel for all with dq added up atomically does 5 products instead of
// 9, in no fixed order. Had the forward pass saved y and the log-sum of every query, `stats` (2 of the 9) would be one pass over
// y and g. 64 columns: tiles of 64 queries spill 356 bytes in `columns`, those of 32 with all addresses in registers 20: its
// products are unrolled by halves; 8 warps of 16 rows spill 16 at 128 registers. 128 columns: 4 warps of 32 rows spill 88 bytes in
// `rows`; tiles of 64 queries fit in registers, but take 128 KiB of shared memory.
#include "common/flash.cuh"

// Numbers about each query, for whole tiles of 128: shift - log2 of (2^(scale2 m) times the sum), and sum P dP.
// After those of all queries a bound of the scores' cotangents for every key head, where these are scaled.
struct Folded {
    const f32 *offset, *delta, *bound;
    DEVICE Folded(const f32* folded, const Flash& p, i64 head) {
        i64 padded = (p.tq + 127) / 128 * 128;
        offset = folded + head * padded;
        delta = offset + p.heads * padded;
        bound = folded + 2 * p.heads * padded + head / p.group;
    }
    // The power of two by which T holds all cotangents of scores.
    template <class T> DEVICE int exponent() const { return Range<T>::NARROW ? exponent_for(*bound) : 0; }
};

// Of every query {maximum, 1 / sum, sum P dP} for sdpa.cu, and the same folded.
template <class T, int W, int WARPS, int MT, int N>
DEVICE void survey(f32* stats, f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p) {
    constexpr int M = 16 * MT * WARPS, NT = N / 8, THREADS = 32 * WARPS;
    DYN_SMEM(T, queries);
    T *cotangents = queries + M * W, *stages = cotangents + M * W;
    int lane = lane_index(), own = warp_index() * 16 * MT;
    i64 tiles = (p.tq + M - 1) / M;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < p.heads * tiles; item += gridDim.x) {
        i64 i0 = (tiles - 1 - item / p.heads) * M, head = item % p.heads;
        const KeyTiles<T, W, N, THREADS> fetch_keys(stages, k, v, p, head);
        const Walk<N> walk(p, i0, M);
        __syncthreads();
        fetch<W, M, THREADS>(queries, q + offset_of(p.q.lead, head), p.q.row, i0, p.tq, p.d);
        fetch<W, M, THREADS>(cotangents, g + offset_of(p.g.lead, head), p.g.row, i0, p.tq, p.dv);
        if (walk.first < walk.end) fetch_keys(walk.end - 1, 0);
        copy_commit();
        f32 m[MT][2], l[MT][2], delta[MT][2], largest[MT][2];
#pragma unroll
        for (int t = 0; t < MT; t++)
#pragma unroll
            for (int h = 0; h < 2; h++) m[t][h] = -Limits<f32>::infinity(), l[t][h] = delta[t][h] = largest[t][h] = 0.0f;
#pragma unroll 1
        for (int tile = walk.end - 1; tile >= walk.first; tile--) {
            int stage = (walk.end - 1 - tile) % 2;
            copy_wait<0>();
            __syncthreads();
            if (tile > walk.first) fetch_keys(tile - 1, 1 - stage);
            copy_commit();
            if (apart(p, i0 + own, 16 * MT, i64(tile) * N, N)) continue;
            const T* now = stages + stage * 2 * N * W;
            f32 s[MT][NT][4], dp[MT][NT][4];
            multiply_transposed<T, W>(queries, own, now, s);
            multiply_transposed<T, W>(cotangents, own, now + N * W, dp);
            if (walk.hides(tile)) hide(p, i0 + own, i64(tile) * N, s);
#pragma unroll
            for (int t = 0; t < MT; t++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    f32 factor = advance(p, 0.0f, t, h, s, m[t][h], l[t][h]), sum = 0.0f, most = 0.0f;
                    // A weight of 0 leaves out what it is multiplied with: no later pass could repair these sums.
#pragma unroll
                    for (int n = 0; n < NT; n++)
#pragma unroll
                        for (int e = 2 * h; e < 2 * h + 2; e++) {
                            sum = s[t][n][e] == 0.0f ? sum : fmaf(s[t][n][e], dp[t][n][e], sum);
                            // fmaxf passes over a NaN.
                            if (Range<T>::NARROW) most = fmaxf(most, fabsf(s[t][n][e] * dp[t][n][e]));
                        }
                    delta[t][h] = factor == 0.0f ? sum : fmaf(delta[t][h], factor, sum);
                    if (Range<T>::NARROW) largest[t][h] = fmaxf(most, largest[t][h] * factor);
                }
        }
        copy_wait<0>();
        __syncthreads();
        i64 padded = (p.tq + 127) / 128 * 128;
        f32 bound = 0.0f;
#pragma unroll
        for (int t = 0; t < MT; t++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                f32 sum = warp_reduce<SumOf, 4>(l[t][h]), inverse = m[t][h] == -Limits<f32>::infinity() ? 0.0f : 1.0f / sum;
                f32 dot = warp_reduce<SumOf, 4>(delta[t][h]) * inverse;
                i64 row = i0 + own + 16 * t + 8 * h + lane / 4;
                // |P (dP - sum P dP)|, whose weights are at most 1 / sum. A row that is not finite is computed again, and bounds no other.
                f32 own_bound = (largest[t][h] + fabsf(dot)) * inverse;
                if (Range<T>::NARROW && row < p.tq && own_bound < Limits<f32>::infinity()) bound = fmaxf(bound, own_bound);
                if (lane % 4 == 0) {
                    bool blind = inverse == 0.0f || row >= p.tq;
                    folded[head * padded + row] = f32(Range<T>::SHIFT) - (blind ? 0.0f : fmaf(m[t][h], p.scale2, m_log(sum) * LOG2_E));
                    folded[(p.heads + head) * padded + row] = dot;
                    if (row < p.tq) {
                        f32* to = stats + 3 * (head * p.tq + row);
                        to[0] = m[t][h] * p.scale;
                        to[1] = inverse;
                        to[2] = dot;
                    }
                }
            }
        if (Range<T>::NARROW) {
            bound = warp_reduce<LargerOf>(bound);
            // Numbers that are not negative have the order of their bits.
            u32* all = reinterpret_cast<u32*>(folded + 2 * p.heads * padded + head / p.group);
            if (lane == 0) atomicMax(all, bits_of(bound));
        }
    }
}

// Products to weights, and the cotangents of products to those of scores, where a row has one offset and one delta.
template <int MT, int NT>
DEVICE void differentiate(const Flash& p, const f32 (&offset)[MT][2], const f32 (&delta)[MT][2], const f32 (&s)[MT][NT][4], f32 (&dp)[MT][NT][4]) {
#pragma unroll
    for (int t = 0; t < MT; t++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) dp[t][n][e] = power_of_two(fmaf(s[t][n][e], p.scale2, offset[t][e / 2])) * (dp[t][n][e] - delta[t][e / 2]);
}

template <class T, int W, int WARPS, int MT, int N>
DEVICE void query_cotangents(T* dq, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p) {
    constexpr int M = 16 * MT * WARPS, NT = N / 8, THREADS = 32 * WARPS;
    DYN_SMEM(T, queries);
    T *cotangents = queries + M * W, *stages = cotangents + M * W;
    int lane = lane_index(), own = warp_index() * 16 * MT;
    i64 tiles = (p.tq + M - 1) / M;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < p.heads * tiles; item += gridDim.x) {
        i64 i0 = (tiles - 1 - item / p.heads) * M, head = item % p.heads;
        const KeyTiles<T, W, N, THREADS> fetch_keys(stages, k, v, p, head);
        const Walk<N> walk(p, i0, M);
        __syncthreads();
        fetch<W, M, THREADS>(queries, q + offset_of(p.q.lead, head), p.q.row, i0, p.tq, p.d);
        fetch<W, M, THREADS>(cotangents, g + offset_of(p.g.lead, head), p.g.row, i0, p.tq, p.dv);
        if (walk.first < walk.end) fetch_keys(walk.end - 1, 0);
        copy_commit();
        const Folded about(folded, p, head);
        const int exponent = about.exponent<T>();
        f32 o[MT][W / 8][4], offset[MT][2], delta[MT][2], factor[MT][2];
        bool finite[MT];
        clear(o);
#pragma unroll
        for (int t = 0; t < MT; t++) {
            finite[t] = true;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                i64 row = i0 + own + 16 * t + 8 * h + lane / 4;
                offset[t][h] = about.offset[row] + f32(exponent - Range<T>::SHIFT);
                delta[t][h] = about.delta[row];
                factor[t][h] = p.scale * exactly_two_to(-exponent);
            }
        }
#pragma unroll 1
        for (int tile = walk.end - 1; tile >= walk.first; tile--) {
            int stage = (walk.end - 1 - tile) % 2;
            copy_wait<0>();
            __syncthreads();
            if (tile > walk.first) fetch_keys(tile - 1, 1 - stage);
            copy_commit();
            if (apart(p, i0 + own, 16 * MT, i64(tile) * N, N)) continue;
            const T* now = stages + stage * 2 * N * W;
            f32 s[MT][NT][4], dp[MT][NT][4];
            multiply_transposed<T, W>(queries, own, now, s);
            multiply_transposed<T, W>(cotangents, own, now + N * W, dp);
            if (walk.hides(tile)) hide(p, i0 + own, i64(tile) * N, s);
            differentiate(p, offset, delta, s, dp);
            multiply_add<T, W>(dp, now, o);
        }
        copy_wait<0>();
        __syncthreads();
        put<T, W>(queries, own, o, factor, dq, head, i0 + own, p.tq, p.d, finite);
        note(notes, p.left_out, head, i0 + own, p.tq, finite);
    }
}

// Scores of the keys from `key` on (rows) with the queries from `query` on: -infinity where the key is not seen.
template <int MT, int NT> DEVICE void hide_transposed(const Flash& p, i64 key, i64 query, f32 (&s)[MT][NT][4]) {
    int lane = lane_index();
#pragma unroll
    for (int t = 0; t < MT; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            i64 j = key + 16 * t + 8 * h + lane / 4;
            int start = within(sees_from(p, j) - query, 0, 8 * NT), end = j < p.tk ? within(sees_to(p, j) - query, 0, 8 * NT) : 0;
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int i = 8 * n + lane % 4 * 2 + e;
                    if (i < start || i >= end) s[t][n][2 * h + e] = -Limits<f32>::infinity();
                }
        }
}

// dk and dv, those that are there.
template <class T, int W, int WARPS, int MT, int N>
DEVICE void key_cotangents(T* dk, T* dv, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p) {
    constexpr int M = 16 * MT * WARPS, NT = N / 8, THREADS = 32 * WARPS;
    // A stage holds queries, their cotangents, offsets and deltas.
    constexpr int STAGE = 2 * N * W + 4 * N;
    // Unrolled further, the addresses of all steps do not fit into registers beside both results.
    constexpr int UNROLL = MT * W >= 128 ? 2 : W / 16;
    DYN_SMEM(T, keys);
    T *values = keys + M * W, *stages = values + M * W;
    int lane = lane_index(), own = warp_index() * 16 * MT;
    i64 key_heads = p.heads / p.group, tiles = (p.tk + M - 1) / M;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < key_heads * tiles; item += gridDim.x) {
        // Early keys, which the most queries see, come first.
        i64 j0 = item / key_heads * M, key_head = item % key_heads;
        // Tiles of queries that see one of the keys, of each head.
        int first = int(sees_from(p, j0) / N), end = int((sees_to(p, least(j0 + M, p.tk) - 1) + N - 1) / N);
        auto fetch_queries = [&](i64 head, int tile, int stage) {
            i64 i0 = i64(tile) * N;
            T* to = stages + stage * STAGE;
            fetch<W, N, THREADS>(to, q + offset_of(p.q.lead, head), p.q.row, i0, p.tq, p.d);
            fetch<W, N, THREADS>(to + N * W, g + offset_of(p.g.lead, head), p.g.row, i0, p.tq, p.dv);
            const Folded about(folded, p, head);
            int i = int(threadIdx.x);
            f32* numbers = reinterpret_cast<f32*>(to + 2 * N * W);
            if (i < N / 4) copy_async(numbers + 4 * i, about.offset + i0 + 4 * i);
            else if (i < N / 2) copy_async(numbers + 4 * i, about.delta + i0 + 4 * i - N);
        };
        __syncthreads();
        fetch<W, M, THREADS>(keys, k + offset_of(p.k.lead, key_head), p.k.row, j0, p.tk, p.d);
        fetch<W, M, THREADS>(values, v + offset_of(p.v.lead, key_head), p.v.row, j0, p.tk, p.dv);
        i64 head = key_head * p.group, heads = first < end ? head + p.group : head;
        if (head < heads) fetch_queries(head, first, 0);
        copy_commit();
        const int exponent = Folded(folded, p, key_head * p.group).exponent<T>();
        // The weights have their shift already.
        const f32 unit = exactly_two_to(exponent - Range<T>::SHIFT);
        f32 k_sum[MT][W / 8][4], v_sum[MT][W / 8][4];
        clear(k_sum);
        clear(v_sum);
#pragma unroll 1
        for (int tile = first, stage = 0; head < heads; stage = 1 - stage) {
            i64 i0 = i64(tile) * N;
            copy_wait<0>();
            __syncthreads();
            if (++tile == end) tile = first, head++;
            if (head < heads) fetch_queries(head, tile, 1 - stage);
            copy_commit();
            if (apart(p, i0, N, j0 + own, 16 * MT)) continue;
            const T *queries = stages + stage * STAGE, *cotangents = queries + N * W;
            const f32* numbers = reinterpret_cast<const f32*>(cotangents + N * W) + lane % 4 * 2;
            f32 s[MT][NT][4];
            multiply_transposed<T, W, UNROLL>(keys, own, queries, s);
            if (seen_from(p, i0 + N - 1) > j0 || seen_to(p, i0) < j0 + M || i0 + N > p.tq) hide_transposed(p, j0 + own, i0, s);
#pragma unroll
            for (int t = 0; t < MT; t++)
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) s[t][n][e] = power_of_two(fmaf(s[t][n][e], p.scale2, numbers[8 * n + e % 2]));
            if (dv) multiply_add<T, W>(s, cotangents, v_sum);
            if (!dk) continue;
            f32 dp[MT][NT][4];
            multiply_transposed<T, W, UNROLL>(values, own, cotangents, dp);
#pragma unroll
            for (int t = 0; t < MT; t++)
#pragma unroll
                for (int n = 0; n < NT; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        f32 delta = numbers[N + 8 * n + e % 2];
                        dp[t][n][e] = s[t][n][e] * (Range<T>::NARROW ? fmaf(dp[t][n][e], unit, -delta * unit) : dp[t][n][e] - delta);
                    }
            multiply_add<T, W>(dp, queries, k_sum);
        }
        copy_wait<0>();
        __syncthreads();
        bool finite[MT];
        f32 k_factor[MT][2], v_factor[MT][2];
#pragma unroll
        for (int t = 0; t < MT; t++) {
            finite[t] = true;
            v_factor[t][0] = v_factor[t][1] = exactly_two_to(-Range<T>::SHIFT);
            k_factor[t][0] = k_factor[t][1] = p.scale * exactly_two_to(-exponent);
        }
        if (dk) put<T, W>(keys, own, k_sum, k_factor, dk, key_head, j0 + own, p.tk, p.d, finite);
        if (dv) put<T, W>(values, own, v_sum, v_factor, dv, key_head, j0 + own, p.tk, p.dv, finite);
        note(notes, p.left_out, key_head, j0 + own, p.tk, finite);
    }
}

LAUNCH_BOUNDS(128, 2)
KERNEL(sdpa_mma_vjp_stats_32, (f32* stats, f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    survey<T, 32, 4, 2, 32>(stats, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(128, 2)
KERNEL(sdpa_mma_vjp_stats_64, (f32* stats, f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    survey<T, 64, 4, 2, 32>(stats, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(256, 1)
KERNEL(sdpa_mma_vjp_stats_96, (f32* stats, f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    survey<T, 96, 8, 1, 32>(stats, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(256, 1)
KERNEL(sdpa_mma_vjp_stats_128, (f32* stats, f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    survey<T, 128, 8, 1, 32>(stats, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(128, 2)
KERNEL(sdpa_mma_vjp_rows_32, (T* dq, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    query_cotangents<T, 32, 4, 2, 32>(dq, notes, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(128, 2)
KERNEL(sdpa_mma_vjp_rows_64, (T* dq, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    query_cotangents<T, 64, 4, 2, 32>(dq, notes, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(256, 1)
KERNEL(sdpa_mma_vjp_rows_96, (T* dq, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    query_cotangents<T, 96, 8, 1, 32>(dq, notes, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(256, 1)
KERNEL(sdpa_mma_vjp_rows_128, (T* dq, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    query_cotangents<T, 128, 8, 1, 32>(dq, notes, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(128, 2)
KERNEL(sdpa_mma_vjp_columns_32,
       (maybe<T*> dk, maybe<T*> dv, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    key_cotangents<T, 32, 4, 2, 32>(dk, dv, notes, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(128, 2)
KERNEL(sdpa_mma_vjp_columns_64,
       (maybe<T*> dk, maybe<T*> dv, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    key_cotangents<T, 64, 4, 2, 32>(dk, dv, notes, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(256, 1)
KERNEL(sdpa_mma_vjp_columns_96,
       (maybe<T*> dk, maybe<T*> dv, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    key_cotangents<T, 96, 8, 1, 32>(dk, dv, notes, folded, q, k, v, g, p);
}

LAUNCH_BOUNDS(256, 1)
KERNEL(sdpa_mma_vjp_columns_128,
       (maybe<T*> dk, maybe<T*> dv, u8* notes, const f32* folded, const T* q, const T* k, const T* v, const T* g, const Flash& p), bf16, f16) {
    key_cotangents<T, 128, 8, 1, 32>(dk, dv, notes, folded, q, k, v, g, p);
}
