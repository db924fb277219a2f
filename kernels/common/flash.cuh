// Tiles of attention on tensor cores: their way into shared memory, and the two products that every pass is made of.
//
// A tile is ROWS x W elements of 16 bits, rows one after the other, in chunks of 16 bytes. Chunk c of row r lies where chunk
// c ^ swizzle(r) would: the eight rows that one matrix of ldmatrix reads then lie in different banks. Columns from the operand's
// width to W, and rows after its end, are zeros.
#pragma once
#include "common/async.cuh"
#include "common/attention.cuh"
#include "common/mma.cuh"
#include "common/notes.cuh"
#include "common/reduce.cuh"

// Operands and options. `heads` are query heads, `group` of which share a key head; query i sees the keys from i + tk - tq - left
// to i + tk - tq + right; `scale2` is scale / ln 2, and positive. `left_out` counts what the plain kernels compute again.
struct Flash {
    Heads q, k, v, g;
    i64 heads, group, tq, tk, left, right;
    i32 d, dv;
    f32 scale, scale2;
    u64* left_out;
};
static_assert(sizeof(Flash) == 680, "as in src/backend/cuda/abi");

constexpr f32 LOG2_E = 1.44269504088896340736f;

// The range of T. Weights are at most 1; they are multiplied by 2^SHIFT before they are rounded, so that f16 keeps small ones: its
// normal numbers end at 2^-14. The cotangents of scores have no such bound (a loss may be scaled by 2^16 or more): where NARROW,
// those of a key head are multiplied by the power of two that brings the largest of them close to 2^15.
template <class T> struct Range { static constexpr bool NARROW = false; static constexpr int SHIFT = 0; };
template <> struct Range<f16> { static constexpr bool NARROW = true; static constexpr int SHIFT = 14; };

// 2^e for -126 <= e <= 127.
DEVICE f32 exactly_two_to(int e) { return of_bits(u32(e + 127) << 23); }
// The e for which |x| 2^e is at least 2^14 and below 2^15, as far as both stay in range.
DEVICE int exponent_for(f32 x) {
    int e = 14 + 127 - int(bits_of(x) << 1 >> 24);
    return e > 100 ? 100 : e < -100 ? -100 : e;
}

// 2^x by the special function unit: within 2 ulp, and 0 instead of subnormal numbers.
DEVICE f32 power_of_two(f32 x) {
#ifdef CUEMU
    return exp2f(x);
#else
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

struct LargerOf {
    static DEVICE f32 join(f32 a, f32 b) { return fmaxf(a, b); }
};

template <int W> DEVICE int swizzle(int row) { return W % 64 == 0 ? row % 8 : row / 2 % 4; }
// The first element of a chunk.
template <int W> DEVICE int chunk_at(int row, int chunk) { return row * W + (chunk ^ swizzle<W>(row)) * 8; }

// Starts the copy of rows r0 to r0 + ROWS - 1 of a matrix of `rows` rows and `cols` columns.
template <int W, int ROWS, int THREADS, class T> DEVICE void fetch(T* tile, const T* x, i64 stride, i64 r0, i64 rows, i32 cols) {
    constexpr int CHUNKS = W / 8, STEP = THREADS / CHUNKS;
    int c = int(threadIdx.x) % CHUNKS, r = int(threadIdx.x) / CHUNKS;
    if (r >= STEP) return;
    int there = c * 8 < cols ? within(rows - r0, 0, ROWS) : 0;
    const T* from = x + (r0 + r) * stride + c * 8;
#pragma unroll
    for (int i = 0; i < (ROWS + STEP - 1) / STEP; i++, r += STEP, from += STEP * stride)
        if (ROWS % STEP == 0 || r < ROWS) copy_async(tile + chunk_at<W>(r, c), r < there ? from : x, r < there);
}

// Tiles of N keys and, after them, their values, copied to one of two stages of shared memory.
template <class T, int W, int N, int THREADS> struct KeyTiles {
    T* stages;
    const T *keys, *values;
    const Flash& p;
    DEVICE KeyTiles(T* stages, const T* k, const T* v, const Flash& p, i64 head) : stages(stages), p(p) {
        keys = k + offset_of(p.k.lead, head / p.group);
        values = v + offset_of(p.v.lead, head / p.group);
    }
    DEVICE void operator()(int tile, int stage) const {
        T* to = stages + stage * 2 * N * W;
        fetch<W, N, THREADS>(to, keys, p.k.row, i64(tile) * N, p.tk, p.d);
        fetch<W, N, THREADS>(to + N * W, values, p.v.row, i64(tile) * N, p.tk, p.dv);
    }
};

template <int MT, int N> DEVICE void clear(f32 (&x)[MT][N][4]) {
#pragma unroll
    for (int t = 0; t < MT; t++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) x[t][n][e] = 0.0f;
}

// s = a b^T: MT x 16 rows of tile `a` from `row` on with all 8 NT rows of tile `b`.
template <class T, int W, int UNROLL = W / 16, int MT, int NT> DEVICE void multiply_transposed(const T* a, int row, const T* b, f32 (&s)[MT][NT][4]) {
    int lane = lane_index();
    clear(s);
#pragma unroll UNROLL
    for (int k = 0; k < W / 16; k++) {
        u32 x[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) load_matrices(x[m], a + chunk_at<W>(row + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
            u32 z[4];
            load_matrices(z, b + chunk_at<W>(8 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            const u32 left[2] = {z[0], z[1]}, right[2] = {z[2], z[3]};
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma<T>(s[m][n], x[m], left);
                mma<T>(s[m][n + 1], x[m], right);
            }
        }
    }
}

// o += w b: the weights of MT x 16 rows, which this warp's lanes hold as `multiply_transposed` left them, rounded to T, with the
// 8 NT rows of tile `b`.
template <class T, int W, int MT, int NT> DEVICE void multiply_add(const f32 (&w)[MT][NT][4], const T* b, f32 (&o)[MT][W / 8][4]) {
    int lane = lane_index();
#pragma unroll
    for (int k = 0; k < NT; k += 2) {
        u32 x[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][i] = pack<T>(w[m][k + i / 2][i % 2 * 2], w[m][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < W / 8; n += 2) {
            u32 z[4];
            load_matrices_transposed(z, b + chunk_at<W>(8 * k + lane % 16, n + lane / 16));
            const u32 left[2] = {z[0], z[1]}, right[2] = {z[2], z[3]};
#pragma unroll
            for (int m = 0; m < MT; m++) {
                mma<T>(o[m][n], x[m], left);
                mma<T>(o[m][n + 1], x[m], right);
            }
        }
    }
}

// Writes 16 MT rows of results, times the factors of this lane's rows, from `row` on. They pass through `tile`, whose rows
// `own` and following belong to this warp, so that 16 bytes are written at once. Clears `finite` for each 16 that are not.
template <class T, int W, int MT>
DEVICE void put(T* tile, int own, const f32 (&o)[MT][W / 8][4], const f32 (&factor)[MT][2], T* y, i64 head, i64 row, i64 rows, i32 cols, bool (&finite)[MT]) {
    int lane = lane_index();
    __syncwarp();
#pragma unroll
    for (int m = 0; m < MT; m++) {
        f32 sum = 0.0f;
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int n = 0; n < W / 8; n++) {
                f32 a = o[m][n][2 * h] * factor[m][h], b = o[m][n][2 * h + 1] * factor[m][h];
                // NaN unless all are finite.
                sum = fmaf(a, 0.0f, fmaf(b, 0.0f, sum));
                u32* to = reinterpret_cast<u32*>(tile + chunk_at<W>(own + 16 * m + 8 * h + lane / 4, n) + lane % 4 * 2);
                *to = pack<T>(a, b);
            }
        finite[m] = finite[m] && __all_sync(0xffffffffu, sum == 0.0f);
    }
    __syncwarp();
    i32 chunks = cols / 8, there = within(rows - row, 0, 16 * MT);
#pragma unroll 1
    for (i32 i = lane; i < chunks * there; i += 32) {
        i32 r = i / chunks, c = i % chunks;
        uint4 x = *reinterpret_cast<const uint4*>(tile + chunk_at<W>(own + r, c));
        *reinterpret_cast<uint4*>(y + (head * rows + row + r) * cols + 8 * c) = x;
    }
}

// Notes which of the 16 MT rows from `row` on are not finite, and how many such groups there are.
template <int MT> DEVICE void note(u8* notes, u64* left_out, i64 head, i64 row, i64 rows, const bool (&finite)[MT]) {
#pragma unroll
    for (int m = 0; m < MT; m++) {
        if (lane_index() != 0 || row + 16 * m >= rows) continue;
        notes[NOTES + head * ((rows + 15) / 16) + row / 16 + m] = finite[m] ? 0 : 1;
        if (finite[m]) continue;
        atomicAdd(reinterpret_cast<u32*>(notes), 1u);
        atomicAdd(left_out, u64(1));
    }
}

DEVICE i64 clamped(i64 x, i64 end) { return x < 0 ? 0 : least(x, end); }
// The keys that a query sees: the first, and the end.
DEVICE i64 seen_from(const Flash& p, i64 query) { return clamped(query + p.tk - p.tq - p.left, p.tk); }
DEVICE i64 seen_to(const Flash& p, i64 query) { return clamped(query + p.tk - p.tq + p.right + 1, p.tk); }
// The queries that see a key, which is there.
DEVICE i64 sees_from(const Flash& p, i64 key) { return clamped(key + p.tq - p.tk - p.right, p.tq); }
DEVICE i64 sees_to(const Flash& p, i64 key) { return clamped(key + p.tq - p.tk + p.left + 1, p.tq); }

// The tiles of N keys that M queries see, from the first one on; and the keys that all of them see.
template <int N> struct Walk {
    int first, end;
    i64 all_from, all_to;
    DEVICE Walk(const Flash& p, i64 query, int m) {
        i64 last = least(query + m, p.tq) - 1;
        all_from = seen_from(p, last);
        all_to = seen_to(p, query);
        first = int(seen_from(p, query) / N);
        end = int((seen_to(p, last) + N - 1) / N);
    }
    // Whether some query does not see a key of the tile.
    DEVICE bool hides(int tile) const { return i64(tile) * N < all_from || i64(tile + 1) * N > all_to; }
};

// Whether none of m queries sees one of n keys.
DEVICE bool apart(const Flash& p, i64 query, int m, i64 key, int n) { return seen_to(p, query + m - 1) <= key || seen_from(p, query) >= key + n; }

// Scores of the queries from `query` on with the keys from `key` on: -infinity where the key is not seen.
template <int MT, int NT> DEVICE void hide(const Flash& p, i64 query, i64 key, f32 (&s)[MT][NT][4]) {
    int lane = lane_index();
#pragma unroll
    for (int t = 0; t < MT; t++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            i64 i = query + 16 * t + 8 * h + lane / 4;
            int start = within(seen_from(p, i) - key, 0, 8 * NT), end = within(seen_to(p, i) - key, 0, 8 * NT);
#pragma unroll
            for (int n = 0; n < NT; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    int j = 8 * n + lane % 4 * 2 + e;
                    if (j < start || j >= end) s[t][n][2 * h + e] = -Limits<f32>::infinity();
                }
        }
}

// Takes new scores of row h of tile t into the running maximum m and this lane's share l of the sum of weights 2^(scale2 (s - m) +
// shift), which the scores become. Gives the factor of what was summed before.
template <int MT, int NT> DEVICE f32 advance(const Flash& p, f32 shift, int t, int h, f32 (&s)[MT][NT][4], f32& m, f32& l) {
    f32 top = m, sum = 0.0f;
#pragma unroll
    for (int n = 0; n < NT; n++) top = fmaxf(top, fmaxf(s[t][n][2 * h], s[t][n][2 * h + 1]));
    top = warp_reduce<LargerOf, 4>(top);
    // A query that has seen nothing yet has weights 2^-infinity.
    f32 base = top == -Limits<f32>::infinity() ? 0.0f : top;
    // Of the difference: exactly 1 where the maximum stays. A factor that is off by the rounding of m scale2 would be so at every
    // tile, and give the first keys another weight than the last.
    f32 factor = power_of_two((m - base) * p.scale2);
    base = fmaf(-base, p.scale2, shift);
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            f32 w = power_of_two(fmaf(s[t][n][2 * h + e], p.scale2, base));
            s[t][n][2 * h + e] = w;
            sum += w;
        }
    m = top;
    l = fmaf(l, factor, sum);
    return factor;
}
