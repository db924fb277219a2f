// Attention of few queries to many keys, as in generation: reading keys and values once is all there is to do.
//
// Math         as sdpa.cu. A part of the keys gives each query a maximum m, a sum l of e^(s - m) and sums o = sum e^(s - m) v; parts
//              join as m = max m_i, l = sum l_i e^(m_i - m), y = sum o_i e^(m_i - m) / l
// Mapping      a block takes a run of keys (a number that follows from the sizes) of one key head and up to 8 query rows of all
//              query heads that share it. Scores: 8 lanes a key, 16 bytes a load, all rows at once from shared memory. Then a
//              warp per row for the softmax. Values: a thread owns 16 bytes of columns for every so-many-th key, and the threads
//              of a column are added up in order. `combine`: a thread per element of the result
// Memory       k and v once per 8 rows; partial results, about 1 / keys of that
// Aliasing     none
// Determinism  runs of keys follow from the sizes, and are joined in their order
// Tried        queries of sdpa_forward's tile of 32: 31 of 32 products of one query are thrown away
#include "common/attention.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

// Query rows of a block, most keys of a run, widest head, and lanes that share a key.
constexpr int ROWS = 8, KEYS = 256, WIDEST = 256, LANES = 8, WARPS = 4, THREADS = 32 * WARPS;

// N elements from column c on, zeros beyond the last.
template <class T, int N> DEVICE void load_row(const T* row, i64 step, i64 c, i64 cols, bool packed, acc<T> (&x)[N]) {
    if (packed) {
        Pack<T, N> p;
        p.load(row + c);
#pragma unroll
        for (int e = 0; e < N; e++) x[e] = load(p.v[e]);
    } else {
#pragma unroll
        for (int e = 0; e < N; e++) x[e] = c + e < cols ? load(row[(c + e) * step]) : acc<T>(0);
    }
}

// Whether the rows of a matrix can be read 16 bytes at a time.
template <class T> DEVICE bool in_packs(const T* x, const Heads& v, i64 cols) {
    constexpr int N = PACK<T>;
    return v.col == 1 && v.row % N == 0 && cols % N == 0 && aligned<T, N>(x);
}

// Runs of `keys` keys from `first` to `end`; row r of a key head is query r % tq of its head r / tq. Per row of all heads and
// run: stats {m, l} and dv sums.
LAUNCH_BOUNDS(128, 3)
KERNEL(sdpa_decode_part,
       (acc<T>* stats, acc<T>* sums, const T* q, const Heads& vq, const T* k, const Heads& vk, const T* v, const Heads& vv, maybe<const u8*> allowed,
        maybe<const T*> added, const Heads& vm, const Scores& p, i64 first, i64 end, i64 keys),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    constexpr int N = PACK<T>;
    SMEM(A, query, [ROWS * WIDEST]);
    SMEM(A, scores, [ROWS * KEYS]);
    SMEM(A, joined, [THREADS * N]);
    const A hidden = -Limits<A>::infinity();
    const i64 rows = p.group * p.tq, chunks = (rows + ROWS - 1) / ROWS, runs = (end - first + keys - 1) / keys;
    const int tid = int(threadIdx.x), lane = tid % LANES;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < p.heads / p.group * runs * chunks; item += gridDim.x) {
        i64 unit = item / (runs * chunks), run = item / chunks % runs, r0 = item % chunks * ROWS, j0 = first + run * keys;
        int n = int(least(keys, end - j0)), here = int(least(ROWS, rows - r0));
        // The queries, with zeros up to a whole pack.
        int width = (int(p.d) + N - 1) / N * N;
        __syncthreads();
#pragma unroll 1
        for (int r = 0; r < here; r++) {
            const T* from = q + offset_of(vq.lead, unit * p.group + (r0 + r) / p.tq) + (r0 + r) % p.tq * vq.row;
            for (int c = tid; c < width; c += THREADS) query[r * WIDEST + c] = c < p.d ? load(from[c * vq.col]) : A(0);
        }
        __syncthreads();
        const T* of_k = k + offset_of(vk.lead, unit) + j0 * vk.row;
        bool packed = in_packs(of_k, vk, p.d);
#pragma unroll 1
        for (int j = tid / LANES; j - tid / LANES < n; j += THREADS / LANES) {
            A s[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) s[r] = A(0);
            if (j < n) {
#pragma unroll 2
                for (int c = lane * N; c < width; c += LANES * N) {
                    A x[N];
                    load_row<T, N>(of_k + j * vk.row, vk.col, c, p.d, packed, x);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
                        if (r >= here) continue;
#pragma unroll
                        for (int e = 0; e < N; e++) s[r] = m_fma(query[r * WIDEST + c + e], x[e], s[r]);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                A whole = warp_reduce<SumOf, LANES>(s[r]);
                if (lane == r && j < n && r < here) scores[r * KEYS + j] = whole;
            }
        }
        __syncthreads();
#pragma unroll 1
        for (int r = warp_index(); r < here; r += WARPS) {
            i64 head = unit * p.group + (r0 + r) / p.tq, i = (r0 + r) % p.tq, line = (allowed || added) ? offset_of(vm.lead, head) + i * vm.row : 0;
            Span sees = keys_of(p, i);
            A m = hidden, l = A(0);
#pragma unroll 1
            for (int j = lane_index(); j < n; j += 32) {
                bool seen = j0 + j >= sees.first && j0 + j < sees.end;
                i64 at = line + (j0 + j) * vm.col;
                A bias = A(0);
                if (seen && allowed) seen = allowed[at] != 0;
                if (seen && added) bias = load(added[at]);
                seen = seen && bias != hidden;
                A s = seen ? capped(p, scores[r * KEYS + j]) + bias : hidden;
                scores[r * KEYS + j] = s;
                m = max_nan(m, s);
            }
            m = warp_reduce<MaxOf>(m);
#pragma unroll 1
            for (int j = lane_index(); j < n; j += 32) {
                A s = scores[r * KEYS + j];
                s = s == hidden ? A(0) : m_exp(s - m);
                scores[r * KEYS + j] = s;
                l += s;
            }
            l = warp_reduce<SumOf>(l);
            if (lane_index() == 0) {
                A* to = stats + 2 * ((unit * rows + r0 + r) * runs + run);
                to[0] = m;
                to[1] = l;
            }
        }
        __syncthreads();
        const T* of_v = v + offset_of(vv.lead, unit) + j0 * vv.row;
        packed = in_packs(of_v, vv, p.dv);
        // As many packs of columns side by side as there are, up to a warp's.
        i64 packs = (p.dv + N - 1) / N;
        int side = 1;
        while (side < 32 && side < packs) side *= 2;
        const int column = tid % side, group = tid / side, groups = THREADS / side;
#pragma unroll 1
        for (i64 c0 = 0; c0 < p.dv; c0 += side * N) {
            i64 c = c0 + column * N;
            A o[ROWS][N];
#pragma unroll
            for (int r = 0; r < ROWS; r++)
#pragma unroll
                for (int e = 0; e < N; e++) o[r][e] = A(0);
            if (c < p.dv) {
#pragma unroll 2
                for (int j = group; j < n; j += groups) {
                    A x[N];
                    load_row<T, N>(of_v + j * vv.row, vv.col, c, p.dv, packed, x);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
                        // A weight of 0 leaves out what it meets.
                        A w = r < here ? scores[r * KEYS + j] : A(0);
                        if (w == A(0)) continue;
#pragma unroll
                        for (int e = 0; e < N; e++) o[r][e] = m_fma(w, x[e], o[r][e]);
                    }
                }
            }
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                if (r >= here) continue;
                __syncthreads();
#pragma unroll
                for (int e = 0; e < N; e++) joined[tid * N + e] = o[r][e];
                __syncthreads();
                for (int e = tid; e < side * N; e += THREADS) {
                    A total = A(0);
                    for (int g = 0; g < groups; g++) total += joined[g * side * N + e];
                    if (c0 + e < p.dv) sums[((unit * rows + r0 + r) * runs + run) * p.dv + c0 + e] = total;
                }
            }
        }
    }
}

// The result of `rows` rows from their `runs` parts.
KERNEL(sdpa_decode_combine, (T* y, const acc<T>* stats, const acc<T>* sums, i64 rows, i64 runs, i64 dv), f64, f32, bf16, f16) {
    typedef acc<T> A;
    const A hidden = -Limits<A>::infinity();
#pragma unroll 1
    for (i64 at = thread_index(); at < rows * dv; at += thread_count()) {
        i64 row = at / dv, c = at % dv;
        const A* stat = stats + 2 * row * runs;
        A m = hidden, l = A(0), o = A(0);
#pragma unroll 1
        for (i64 s = 0; s < runs; s++) m = max_nan(m, stat[2 * s]);
#pragma unroll 1
        for (i64 s = 0; s < runs; s++) {
            A factor = stat[2 * s] == hidden ? A(0) : m_exp(stat[2 * s] - m);
            // What underflowed is gone, even if it is not finite.
            if (factor == A(0)) continue;
            l = m_fma(factor, stat[2 * s + 1], l);
            o = m_fma(factor, sums[(row * runs + s) * dv + c], o);
        }
        y[at] = store<T>(m == hidden ? A(0) : o / l);
    }
}
