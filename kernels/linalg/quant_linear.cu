// Products with a matrix in blocks of 32 elements with one scale, as GGUF files hold them, and the elements themselves.
//
// Math         y[r, n] = sum over k of x[r, k] w[n, k], and w = d q: a scale in half precision for each 32 elements of a row, and whole
//              numbers of 8 bits (Q8_0, 34 bytes a block) or 4 (Q4_0, 18 bytes). d q is exact in float; sums are float, f64's double
// Mapping      four lanes share a block: each has elements 4 lane to 4 lane + 3 and those 16 further on, which lie in the same bytes of
//              Q4_0. `few`, `one`: a warp per output and up to 8 rows of x, or one, 8 blocks at a time; lanes are added up by halves. `many` (f64, f32): a
//              thread block per 64 x 64 outputs, 4 x 4 a thread, a block of the matrix at a time. `mma` (bf16, f16): 64 x 128 outputs on
//              tensor cores, a warp 32 x 32. A block's whole numbers have at most 8 significant bits: they go through the tensor cores
//              as they are, and the sum of a block's 32 products is multiplied by its scale, so nothing but x and y is of 16 bits
// Memory       the matrix as it is stored, in words of 16 bits (blocks lie at even addresses, no more): once per 8 rows (`few`) or per
//              64 (`many`, `mma`); x once per output, mostly from the cache, or once per 64 or 128 outputs
// Aliasing     none
// Determinism  every sum belongs to one warp or thread and has one order; no atomics
// Tried        registers only, nothing has been timed. Converting a byte by the bits of 2^23 + u and one subtraction instead of an integer
//              conversion, which runs at a quarter of the rate. Whole numbers are divided by 2^12, and scales multiplied, so that the sum
//              of a block overflows only where y does. To try on a GPU: two blocks of the matrix a step in `mma`, `many` in 128 x 64
#include "common/flash.cuh"

// Rows of x that `few` takes at once; a block's elements; sides of a tile of `many`; of `mma`.
constexpr int FEW = 8, DEEP = 32, SIDE = 64, TALL = 64, BROAD = 128;
constexpr i64 SHARES = 4;

template <bool BYTES> constexpr i64 BLOCK_BYTES = BYTES ? 34 : 18;

// A lane's part of a block: the scale's bits, the bytes of four elements, and those of the four 16 further on.
struct Share {
    u32 scale, low, high;
};

template <bool BYTES> DEVICE Share fetch_share(const u8* block, int own) {
    const u16* p = reinterpret_cast<const u16*>(block);
    Share s;
    s.scale = p[0];
    s.low = p[1 + 2 * own] | u32(p[2 + 2 * own]) << 16;
    s.high = BYTES ? p[9 + 2 * own] | u32(p[10 + 2 * own]) << 16 : 0;
    return s;
}

template <class A> DEVICE A whole(u32 byte, i32 bias);
template <> DEVICE f32 whole<f32>(u32 byte, i32 bias) { return of_bits(0x4b000000u | byte) - f32(8388608 + bias); }
template <> DEVICE f64 whole<f64>(u32 byte, i32 bias) { return f64(i32(byte) - bias); }

// The share's whole numbers, four and four.
template <bool BYTES, class A> DEVICE void unpack(const Share& s, A (&q)[8]) {
    u32 low = BYTES ? s.low ^ 0x80808080u : s.low & 0x0f0f0f0fu, high = BYTES ? s.high ^ 0x80808080u : s.low >> 4 & 0x0f0f0f0fu;
#pragma unroll
    for (int e = 0; e < 4; e++) {
        q[e] = whole<A>(low >> 8 * e & 255u, BYTES ? 128 : 8);
        q[4 + e] = whole<A>(high >> 8 * e & 255u, BYTES ? 128 : 8);
    }
}

DEVICE f32 scale_of(const Share& s) {
    f16 d;
    d.bits = u16(s.scale);
    return load(d);
}

template <bool BYTES, class A> DEVICE void elements(const Share& s, A (&w)[8]) {
    unpack<BYTES>(s, w);
    A d = A(scale_of(s));
#pragma unroll
    for (int e = 0; e < 8; e++) w[e] *= d;
}

// Elements that move at once: four, or as many as 16 bytes hold.
template <class T> constexpr int STEP = PACK<T> < 4 ? PACK<T> : 4;

// Of 32 elements of x those that belong to a share.
template <class T> DEVICE void load_share(const T* x, int own, bool packed, acc<T> (&v)[8]) {
    constexpr int N = STEP<T>;
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < 4; i += N) {
            const T* from = x + 16 * h + 4 * own + i;
            if (packed) {
                Pack<T, N> p;
                p.load(from);
#pragma unroll
                for (int e = 0; e < N; e++) v[4 * h + i + e] = load(p.v[e]);
            } else {
#pragma unroll
                for (int e = 0; e < N; e++) v[4 * h + i + e] = load(from[e]);
            }
        }
}

template <bool BYTES, int ROWS, class T, int UNROLL = ROWS == 1 ? 4 : 1> DEVICE void few(T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks) {
    typedef acc<T> A;
    const int lane = lane_index(), own = lane % int(SHARES);
    const bool packed = aligned<T, STEP<T>>(x);
    const i64 chunks = (rows + ROWS - 1) / ROWS, warps = i64(gridDim.x) * warp_count();
#pragma unroll 1
    for (i64 item = i64(blockIdx.x) * warp_count() + warp_index(); item < chunks * n; item += warps) {
        // Neighbouring warps read the same row of the matrix for other rows of x.
        const i64 out = item / chunks, first = item % chunks * ROWS;
        const int here = int(least(ROWS, rows - first));
        const u8* row = w + out * blocks * BLOCK_BYTES<BYTES>;
        const T* from = x + first * blocks * DEEP;
        A sum[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[r] = A(0);
#pragma unroll UNROLL
        for (i64 b = lane / int(SHARES); b < blocks; b += 32 / SHARES) {
            A q[8];
            elements<BYTES>(fetch_share<BYTES>(row + b * BLOCK_BYTES<BYTES>, own), q);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (r >= here) continue;
                A v[8];
                load_share(from + (r * blocks + b) * DEEP, own, packed, v);
#pragma unroll
                for (int e = 0; e < 8; e++) sum[r] = m_fma(q[e], v[e], sum[r]);
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            A total = warp_reduce<SumOf>(sum[r]);
            if (lane == r && r < here) y[(first + r) * n + out] = store<T>(total);
        }
    }
}

template <bool BYTES, class T> DEVICE void many(T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks) {
    typedef acc<T> A;
    // Four more than the tile's side: rows stay aligned to 16 bytes, and lie in other banks.
    constexpr int LINE = SIDE + 4;
    SMEM(A, xs, [DEEP * LINE]);
    SMEM(A, ws, [DEEP * LINE]);
    const int tid = int(threadIdx.x), line = tid / int(SHARES), own = tid % int(SHARES), r = tid / 16 * 4, c = tid % 16 * 4;
    const bool packed = aligned<T, STEP<T>>(x);
    const i64 down = (rows + SIDE - 1) / SIDE, across = (n + SIDE - 1) / SIDE;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < down * across; item += gridDim.x) {
        const i64 r0 = item % down * SIDE, c0 = item / down * SIDE;
        const bool row_there = r0 + line < rows, out_there = c0 + line < n;
        const T* from = x + (row_there ? r0 + line : 0) * blocks * DEEP;
        const u8* row = w + (out_there ? c0 + line : 0) * blocks * BLOCK_BYTES<BYTES>;
        A sum[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sum[i][j] = A(0);
#pragma unroll 1
        for (i64 b = 0; b < blocks; b++) {
            A v[8], q[8];
            load_share(from + b * DEEP, own, packed, v);
            elements<BYTES>(fetch_share<BYTES>(row + b * BLOCK_BYTES<BYTES>, own), q);
            // What the tile before is read for is done.
            __syncthreads();
#pragma unroll
            for (int e = 0; e < 8; e++) {
                int k = e / 4 * 16 + 4 * own + e % 4;
                xs[k * LINE + line] = row_there ? v[e] : A(0);
                ws[k * LINE + line] = out_there ? q[e] : A(0);
            }
            __syncthreads();
#pragma unroll 8
            for (int k = 0; k < DEEP; k++) {
                A a[4], z[4];
#pragma unroll
                for (int i = 0; i < 4; i++) a[i] = xs[k * LINE + r + i], z[i] = ws[k * LINE + c + i];
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) sum[i][j] = m_fma(a[i], z[j], sum[i][j]);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (r0 + r + i < rows && c0 + c + j < n) y[(r0 + r + i) * n + c0 + c + j] = store<T>(sum[i][j]);
    }
}

// Rows of x lie at multiples of 16 bytes.
template <bool BYTES, class T> DEVICE void mma_tiles(T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks) {
    constexpr int THREADS = 256, LINES = THREADS / int(SHARES), MT = 2, NT = 4;
    constexpr f32 DOWN = 1.0f / 4096.0f, UP = 4096.0f;
    SMEM(uint4, x_tiles, [2 * TALL * DEEP / 8]);
    SMEM(uint4, w_tiles, [2 * BROAD * DEEP / 8]);
    SMEM(f32, scales, [2 * BROAD]);
    T* xs = reinterpret_cast<T*>(x_tiles);
    T* ws = reinterpret_cast<T*>(w_tiles);
    const int tid = int(threadIdx.x), line = tid / int(SHARES), own = tid % int(SHARES), lane = lane_index();
    const int row = warp_index() / 4 * 16 * MT, out = warp_index() % 4 * 8 * NT;
    const i64 down = (rows + TALL - 1) / TALL, across = (n + BROAD - 1) / BROAD;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < down * across; item += gridDim.x) {
        const i64 r0 = item % down * TALL, c0 = item / down * BROAD;
        Share next[BROAD / LINES];
        auto fetch_next = [&](i64 b, int stage) {
            fetch<DEEP, TALL, THREADS>(xs + stage * TALL * DEEP, x + b * DEEP, blocks * DEEP, r0, rows, DEEP);
            copy_commit();
#pragma unroll
            for (int i = 0; i < BROAD / LINES; i++) {
                i64 at = c0 + line + i * LINES;
                // Beyond the last output any row serves: its sums are not written.
                next[i] = fetch_share<BYTES>(w + ((at < n ? at : 0) * blocks + b) * BLOCK_BYTES<BYTES>, own);
            }
        };
        f32 sum[MT][NT][4];
        clear(sum);
        // The tile before is read to its end.
        __syncthreads();
        fetch_next(0, 0);
#pragma unroll 1
        for (i64 b = 0; b < blocks; b++) {
            const int stage = int(b % 2);
            T* w_now = ws + stage * BROAD * DEEP;
#pragma unroll
            for (int i = 0; i < BROAD / LINES; i++) {
                f32 q[8];
                unpack<BYTES>(next[i], q);
                int to = line + i * LINES;
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    u32 a = pack<T>(q[4 * h] * DOWN, q[4 * h + 1] * DOWN), z = pack<T>(q[4 * h + 2] * DOWN, q[4 * h + 3] * DOWN);
                    *reinterpret_cast<u64*>(w_now + chunk_at<DEEP>(to, 2 * h + own / 2) + own % 2 * 4) = u64(z) << 32 | a;
                }
                if (own == 0) scales[stage * BROAD + to] = scale_of(next[i]) * UP;
            }
            copy_wait<0>();
            __syncthreads();
            if (b + 1 < blocks) fetch_next(b + 1, 1 - stage);
            f32 s[MT][NT][4];
            multiply_transposed<T, DEEP>(xs + stage * TALL * DEEP, row, w_now + out * DEEP, s);
#pragma unroll
            for (int t = 0; t < NT; t++) {
                const f32* d = scales + stage * BROAD + out + 8 * t + lane % 4 * 2;
                f32 left = d[0], right = d[1];
#pragma unroll
                for (int m = 0; m < MT; m++)
#pragma unroll
                    for (int h = 0; h < 2; h++) {
                        sum[m][t][2 * h] = fmaf(left, s[m][t][2 * h], sum[m][t][2 * h]);
                        sum[m][t][2 * h + 1] = fmaf(right, s[m][t][2 * h + 1], sum[m][t][2 * h + 1]);
                    }
            }
        }
#pragma unroll
        for (int m = 0; m < MT; m++)
#pragma unroll
            for (int t = 0; t < NT; t++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    i64 r = r0 + row + 16 * m + e / 2 * 8 + lane / 4, c = c0 + out + 8 * t + lane % 4 * 2 + e % 2;
                    if (r < rows && c < n) y[r * n + c] = store<T>(sum[m][t][e]);
                }
    }
}

// y = the elements of so many blocks, one after the other.
template <bool BYTES, class T> DEVICE void expand(T* y, const u8* w, i64 blocks) {
    constexpr int N = STEP<T>;
#pragma unroll 1
    for (i64 i = thread_index(); i < blocks * SHARES; i += thread_count()) {
        acc<T> q[8];
        int own = int(i % SHARES);
        elements<BYTES>(fetch_share<BYTES>(w + i / SHARES * BLOCK_BYTES<BYTES>, own), q);
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int j = 0; j < 4; j += N) {
                Pack<T, N> p;
#pragma unroll
                for (int e = 0; e < N; e++) p.v[e] = store<T>(q[4 * h + j + e]);
                p.store(y + i / SHARES * DEEP + 16 * h + 4 * own + j);
            }
    }
}

KERNEL(quant_linear_one_q8, (T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks), f64, f32, bf16, f16) { few<true, 1>(y, x, w, rows, n, blocks); }
KERNEL(quant_linear_one_q4, (T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks), f64, f32, bf16, f16) { few<false, 1>(y, x, w, rows, n, blocks); }
KERNEL(quant_linear_few_q8, (T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks), f64, f32, bf16, f16) { few<true, FEW>(y, x, w, rows, n, blocks); }
KERNEL(quant_linear_few_q4, (T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks), f64, f32, bf16, f16) { few<false, FEW>(y, x, w, rows, n, blocks); }

LAUNCH_BOUNDS(256)
KERNEL(quant_linear_many_q8, (T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks), f64, f32) { many<true>(y, x, w, rows, n, blocks); }
LAUNCH_BOUNDS(256)
KERNEL(quant_linear_many_q4, (T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks), f64, f32) { many<false>(y, x, w, rows, n, blocks); }

LAUNCH_BOUNDS(256, 2)
KERNEL(quant_linear_mma_q8, (T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks), bf16, f16) { mma_tiles<true>(y, x, w, rows, n, blocks); }
LAUNCH_BOUNDS(256, 2)
KERNEL(quant_linear_mma_q4, (T* y, const T* x, const u8* w, i64 rows, i64 n, i64 blocks), bf16, f16) { mma_tiles<false>(y, x, w, rows, n, blocks); }

KERNEL(quant_linear_expand_q8, (T* y, const u8* w, i64 blocks), f64, f32, bf16, f16) { expand<true>(y, w, blocks); }
KERNEL(quant_linear_expand_q4, (T* y, const u8* w, i64 blocks), f64, f32, bf16, f16) { expand<false>(y, w, blocks); }
