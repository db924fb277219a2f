// Attention without matrix units: every float type, any extents and strides.
//
// Math: S = cap(scale q k^T) + mask over the keys that a query sees, P = softmax(S), y = drop(P) v. Backward: dP = drop(g v^T),
// dS = P (dP - sum P dP), summed over what the mask is broadcast along for the mask, times cap' for dq = scale dS k and
// dk = scale dS^T q; dv = drop(P)^T g. A key of weight exactly 0 contributes nothing, whatever it holds.
// Mapping: a block owns a tile of M rows of its result and strides over tiles of M x M scores; a thread computes 4 x 4 of them.
// Operands pass through shared memory as floats or doubles: slices of DEPTH columns for scores, panels of M x M for products.
// The keys that a query sees are an interval that only moves forward (causal, window, packed sequences), so a tile of queries
// walks from the first key of its first one to the last key of its last one, and a tile of keys finds its queries likewise: what
// no query sees is never loaded. Blocks of late queries, which see the most keys when causal, start first.
// With `notes`, only those tiles are computed of which sdpa_mma.cu and sdpa_mma_vjp.cu have noted there that they are not finite.
// Memory: nothing of the size of the scores. Backward runs twice over the scores: `rows` finds maximum, sum and sum P dP of
// every query and dq, then `columns` owns the keys and adds up dk and dv over the queries (and query heads) that see them.
// Aliasing: none; results are fresh memory.
// Determinism: every sum belongs to one block and runs in the order of keys or queries; no atomics.
// Tried: one backward kernel that owns the keys and adds to dq by atomics: the bits of dq would not repeat. Keeping the slopes of
// the cap beside the scores: 16 more registers, where recomputing them from the product costs one exponential.
#include "common/attention.cuh"
#include "common/notes.cuh"
#include "common/pack.cuh"
#include "common/reduce.cuh"

// Rows of a tile, columns of a slice, and the distance between rows in shared memory: 16 bytes aligned, spread over the banks.
// (Each is small beside the extents, and the 4 x 4 scores of a thread bound the speed, not the size of a tile.)
constexpr int TILE = 32, DEPTH = 32, PITCH = TILE + 4;
// Shared memory of a stage (two slices or one panel) and of a tile of weights, in 16 bytes.
template <class A> constexpr int STAGE = 2 * DEPTH * PITCH * int(sizeof(A)) / 16;
template <class A> constexpr int WEIGHTS = TILE * PITCH * int(sizeof(A)) / 16;

template <class A> DEVICE void load_quad(const A* p, A (&v)[4]) {
    constexpr int N = PACK<A>;
#pragma unroll
    for (int i = 0; i < 4; i += N) {
        Pack<A, N> x;
        x.load(p + i);
#pragma unroll
        for (int j = 0; j < N; j++) v[i + j] = x.v[j];
    }
}

template <class A> DEVICE void store_quad(A* p, A a, A b, A c, A d) {
    constexpr int N = PACK<A>;
    A v[4] = {a, b, c, d};
#pragma unroll
    for (int i = 0; i < 4; i += N) {
        Pack<A, N> x;
#pragma unroll
        for (int j = 0; j < N; j++) x.v[j] = v[i + j];
        x.store(p + i);
    }
}

// One matrix of a stack.
template <class T> struct Matrix {
    const T* x;
    i64 row, col, rows, cols;
    DEVICE Matrix(const T* x, const Heads& v, i64 head, i64 rows, i64 cols)
        : x(x + offset_of(v.lead, head)), row(v.row), col(v.col), rows(rows), cols(cols) {}
};

// The work of one block on tiles of scores.
template <class T> struct Block {
    typedef acc<T> A;
    static constexpr int M = TILE, SIDE = M / 4, THREADS = SIDE * SIDE;
    A *stage, *weights;
    int* odd;
    // This thread's quads of rows and columns start at 4 ty and 4 tx.
    int tx, ty;

    DEVICE Block(void* stage, void* weights, int* odd)
        : stage(static_cast<A*>(stage)), weights(static_cast<A*>(weights)), odd(odd), tx(int(threadIdx.x) % SIDE), ty(int(threadIdx.x) / SIDE) {}

    // Copies rows r0 to r0 + M - 1, columns c0 to c0 + COLS - 1 into shared memory, zeros where there is nothing. Says whether
    // all elements that this thread has seen are finite.
    template <int COLS> DEVICE bool copy(const Matrix<T>& x, i64 r0, i64 c0, A* to, int col_step, int row_step) const {
        constexpr int STEP = THREADS / COLS;
        int c = int(threadIdx.x) % COLS, r = int(threadIdx.x) / COLS;
        int rows = c0 + c < x.cols ? within(x.rows - r0, 0, M) : 0;
        const T* from = x.x + (r0 + r) * x.row + (c0 + c) * x.col;
        to += c * col_step + r * row_step;
        A odd = A(0);
#pragma unroll 2
        for (; r < M; r += STEP) {
            A v = r < rows ? load(*from) : A(0);
            *to = v;
            odd += v - v;
            from += STEP * x.row;
            to += STEP * row_step;
        }
        return odd == A(0);
    }

    // s = a b^T for M rows of each. Leaves the stage in use.
    DEVICE void dot(const Matrix<T>& a, i64 a0, const Matrix<T>& b, i64 b0, A (&s)[4][4]) const {
        A *left = stage, *right = stage + DEPTH * PITCH;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) s[i][j] = A(0);
#pragma unroll 1
        for (i64 c0 = 0; c0 < a.cols; c0 += DEPTH) {
            __syncthreads();
            copy<DEPTH>(a, a0, c0, left, PITCH, 1);
            copy<DEPTH>(b, b0, c0, right, PITCH, 1);
            __syncthreads();
            int n = within(a.cols - c0, 0, DEPTH);
#pragma unroll 2
            for (int c = 0; c < n; c++) {
                A x[4], z[4];
                load_quad(left + c * PITCH + 4 * ty, x);
                load_quad(right + c * PITCH + 4 * tx, z);
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) s[i][j] = m_fma(x[i], z[j], s[i][j]);
            }
        }
    }

    // Puts a tile of weights into shared memory, its rows along the sum of `multiply`: as they are, or transposed.
    DEVICE void put(const A (&w)[4][4], bool transposed) const {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (transposed) store_quad(weights + (4 * tx + i) * PITCH + 4 * ty, w[0][i], w[1][i], w[2][i], w[3][i]);
            else store_quad(weights + (4 * ty + i) * PITCH + 4 * tx, w[i][0], w[i][1], w[i][2], w[i][3]);
        }
    }

    // o += weights^T x over M rows of x from r0 on, columns c0 to c0 + M - 1. Nobody may be using stage or weights before the
    // first barrier; `w` is this thread's part of the weights.
    DEVICE void multiply(const A (&w)[4][4], bool transposed, const Matrix<T>& x, i64 r0, i64 c0, A (&o)[4][4]) const {
        __syncthreads();
        put(w, transposed);
        if (threadIdx.x == 0) *odd = 0;
        __syncthreads();
        if (!copy<M>(x, r0, c0, stage, 1, PITCH)) *odd = 1;
        __syncthreads();
        int n = within(x.rows - r0, 0, M);
        if (*odd) sum<true>(n, o);
        else sum<false>(n, o);
    }

    // With CAREFUL, a weight of 0 leaves out what it is multiplied with.
    template <bool CAREFUL> DEVICE void sum(int n, A (&o)[4][4]) const {
#pragma unroll 2
        for (int r = 0; r < n; r++) {
            A x[4], z[4];
            load_quad(weights + r * PITCH + 4 * ty, x);
            load_quad(stage + r * PITCH + 4 * tx, z);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) o[i][j] = CAREFUL && x[i] == A(0) ? o[i][j] : m_fma(x[i], z[j], o[i][j]);
        }
    }
};

// What decides over scores beside the operands.
template <class T> struct Masks {
    const u8* allowed;
    const T* added;
    i64 row, col;
    DEVICE Masks(const u8* allowed, const T* added, const Heads& v, i64 head)
        : allowed(allowed), added(added), row(v.row), col(v.col) {
        i64 at = offset_of(v.lead, head);
        if (allowed) this->allowed += at;
        if (added) this->added += at;
    }

    // Products to scores: scaled, capped, masked, -infinity where the key is not seen.
    template <class A> DEVICE void apply(const Scores& p, i64 i0, i64 j0, A (&s)[4][4]) const {
        const A hidden = -Limits<A>::infinity();
        int rows = within(p.tq - i0, 0, 4);
        i64 line = i0 * row + j0 * col;
#pragma unroll
        for (int x = 0; x < 4; x++, line += row) {
            // Rows beyond the last query see nothing.
            Span keys = {0, 0};
            if (x < rows) keys = keys_of(p, i0 + x);
            int first = within(keys.first - j0, 0, 4), end = within(keys.end - j0, 0, 4);
            i64 at = line;
#pragma unroll
            for (int z = 0; z < 4; z++, at += col) {
                bool seen = z >= first && z < end;
                A bias = A(0);
                if (seen && allowed) seen = allowed[at] != 0;
                if (seen && added) bias = load(added[at]);
                seen = seen && bias != hidden;
                s[x][z] = seen ? capped(p, s[x][z]) + bias : hidden;
            }
        }
    }
};

// x drawn by dropout, where tile row i of this thread is query i0 + i of `head`.
template <class A> DEVICE void drop(const Scores& p, i64 head, i64 i0, i64 j0, A (&x)[4][4]) {
    if (!p.dropout) return;
    const A inverse = A(p.inverse_keep);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 bits = kept(p, u64((head * p.tq + i0 + i) * p.tk + j0));
#pragma unroll
        for (int j = 0; j < 4; j++) x[i][j] = bits >> j & 1u ? x[i][j] * inverse : A(0);
    }
}

// A running softmax over the keys of one query: the maximum so far, and this thread's share of the sum. Takes in a row of new
// scores, which become e^(s - m), and gives the factor of what was summed before.
template <int WIDTH, class A> DEVICE A advance(A (&s)[4], A& m, A& l) {
    const A hidden = -Limits<A>::infinity();
    A next = max_nan(max_nan(s[0], s[1]), max_nan(s[2], s[3]));
    next = max_nan(m, warp_reduce<MaxOf, WIDTH>(next));
    A factor = next == hidden ? A(1) : m_exp(m - next), e = A(0);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        s[j] = s[j] == hidden ? A(0) : m_exp(s[j] - next);
        e += s[j];
    }
    l = l * factor + e;
    m = next;
    return factor;
}

// A factor of exactly 0 removes what was summed, even if it is not finite.
template <class A> DEVICE A scaled(A x, A factor) { return factor == A(0) ? A(0) : x * factor; }

LAUNCH_BOUNDS(64, 8)
KERNEL(sdpa_forward,
       (T* y, const T* q, const Heads& vq, const T* k, const Heads& vk, const T* v, const Heads& vv, maybe<const u8*> allowed, maybe<const T*> added,
        const Heads& vm, const Scores& p, maybe<const u8*> notes),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    typedef Block<T> B;
    if (none_noted(notes)) return;
    SMEM(uint4, stage, [STAGE<A>]);
    SMEM(uint4, weights, [WEIGHTS<A>]);
    SMEM(int, odd, [1]);
    const B block(stage, weights, odd);
    const A hidden = -Limits<A>::infinity();
    i64 tiles = (p.tq + B::M - 1) / B::M, chunks = (p.dv + B::M - 1) / B::M, each = p.heads * chunks;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < each * tiles; item += gridDim.x) {
        i64 i0 = (tiles - 1 - item / each) * B::M, head = item % each / chunks, c0 = item % chunks * B::M, mine = i0 + 4 * block.ty;
        if (notes && !noted<B::M>(notes, head, p.tq, i0)) continue;
        const Matrix<T> Q(q, vq, head, p.tq, p.d), K(k, vk, head / p.group, p.tk, p.d), V(v, vv, head / p.group, p.tk, p.dv);
        const Masks<T> mask(allowed, added, vm, head);
        A m[4], l[4], o[4][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            m[i] = hidden;
            l[i] = o[i][0] = o[i][1] = o[i][2] = o[i][3] = A(0);
        }
        const Span keys = keys_of_tile(p, i0, least(i0 + B::M, p.tq));
#pragma unroll 1
        for (i64 j0 = keys.first; j0 < keys.end; j0 += B::M) {
            A s[4][4];
            block.dot(Q, i0, K, j0, s);
            mask.apply(p, mine, j0 + 4 * block.tx, s);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                A factor = advance<B::SIDE>(s[i], m[i], l[i]);
#pragma unroll
                for (int j = 0; j < 4; j++) o[i][j] = scaled(o[i][j], factor);
            }
            drop(p, head, mine, j0 + 4 * block.tx, s);
            block.multiply(s, true, V, j0, c0, o);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            A sum = warp_reduce<SumOf, B::SIDE>(l[i]), inverse = m[i] == hidden ? A(0) : A(1) / sum;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                i64 c = c0 + 4 * block.tx + j;
                if (mine + i < p.tq && c < p.dv) y[(head * p.tq + mine + i) * p.dv + c] = store<T>(o[i][j] * inverse);
            }
        }
    }
}

// Cotangents of weights, in ds, less sum P dP; with `chain` times the slope of the cap at the products s.
template <class A> DEVICE void centre(const Scores& p, bool chain, const A (&delta)[4], const A (&s)[4][4], A (&ds)[4][4]) {
    chain = chain && p.softcap != 0.0;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            ds[i][j] -= delta[i];
            if (chain) ds[i][j] *= cap_slope(p, s[i][j]);
        }
}

// Scores s to weights, and their centred cotangents ds to those of the scores, by the maximum and 1 / sum of each row.
template <class A> DEVICE void cotangents(const A (&m)[4], const A (&inverse)[4], A (&s)[4][4], A (&ds)[4][4]) {
    const A hidden = -Limits<A>::infinity();
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            // Under an infinite maximum the others have weight 0 whatever the sum is.
            A e = s[i][j] == hidden ? A(0) : m_exp(s[i][j] - m[i]);
            s[i][j] = e == A(0) ? A(0) : e * inverse[i];
            ds[i][j] = s[i][j] == A(0) ? A(0) : s[i][j] * ds[i][j];
        }
}

// One of the three numbers that `rows` has written about each of this thread's queries.
template <class A> DEVICE void read_stats(const A* stats, int which, const Scores& p, i64 head, i64 i0, A (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] = i0 + i < p.tq ? stats[3 * (head * p.tq + i0 + i) + which] : A(0);
}

// Of every query {maximum, 1 / sum, sum P dP}, and dq if it is there.
LAUNCH_BOUNDS(64, 8)
KERNEL(sdpa_rows,
       (maybe<T*> dq, acc<T>* stats, const T* q, const Heads& vq, const T* k, const Heads& vk, const T* v, const Heads& vv, const T* g, const Heads& vg,
        maybe<const u8*> allowed, maybe<const T*> added, const Heads& vm, const Scores& p, maybe<const u8*> notes),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    typedef Block<T> B;
    if (none_noted(notes)) return;
    SMEM(uint4, stage, [STAGE<A>]);
    SMEM(uint4, weights, [WEIGHTS<A>]);
    SMEM(int, odd, [1]);
    const B block(stage, weights, odd);
    const A hidden = -Limits<A>::infinity();
    i64 tiles = (p.tq + B::M - 1) / B::M;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < p.heads * tiles; item += gridDim.x) {
        i64 i0 = (tiles - 1 - item / p.heads) * B::M, head = item % p.heads, mine = i0 + 4 * block.ty;
        if (notes && !noted<B::M>(notes, head, p.tq, i0)) continue;
        const Matrix<T> Q(q, vq, head, p.tq, p.d), K(k, vk, head / p.group, p.tk, p.d), V(v, vv, head / p.group, p.tk, p.dv), G(g, vg, head, p.tq, p.dv);
        const Masks<T> mask(allowed, added, vm, head);
        const Span keys = keys_of_tile(p, i0, least(i0 + B::M, p.tq));
        A m[4], l[4], delta[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            m[i] = hidden;
            l[i] = delta[i] = A(0);
        }
#pragma unroll 1
        for (i64 j0 = keys.first; j0 < keys.end; j0 += B::M) {
            A s[4][4], dp[4][4];
            block.dot(G, i0, V, j0, dp);
            drop(p, head, mine, j0 + 4 * block.tx, dp);
            block.dot(Q, i0, K, j0, s);
            mask.apply(p, mine, j0 + 4 * block.tx, s);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                A factor = advance<B::SIDE>(s[i], m[i], l[i]), sum = A(0);
#pragma unroll
                for (int j = 0; j < 4; j++) sum = s[i][j] == A(0) ? sum : m_fma(s[i][j], dp[i][j], sum);
                delta[i] = scaled(delta[i], factor) + sum;
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            A sum = warp_reduce<SumOf, B::SIDE>(l[i]);
            l[i] = m[i] == hidden ? A(0) : A(1) / sum;
            delta[i] = warp_reduce<SumOf, B::SIDE>(delta[i]) * l[i];
            if (block.tx == 0 && mine + i < p.tq) {
                A* to = stats + 3 * (head * p.tq + mine + i);
                to[0] = m[i];
                to[1] = l[i];
                to[2] = delta[i];
            }
        }
        if (!dq) continue;
#pragma unroll 1
        for (i64 c0 = 0; c0 < p.d; c0 += B::M) {
            A o[4][4] = {};
#pragma unroll 1
            for (i64 j0 = keys.first; j0 < keys.end; j0 += B::M) {
                A s[4][4], ds[4][4];
                block.dot(G, i0, V, j0, ds);
                drop(p, head, mine, j0 + 4 * block.tx, ds);
                block.dot(Q, i0, K, j0, s);
                centre(p, true, delta, s, ds);
                mask.apply(p, mine, j0 + 4 * block.tx, s);
                cotangents(m, l, s, ds);
                block.multiply(ds, true, K, j0, c0, o);
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    i64 c = c0 + 4 * block.tx + j;
                    if (mine + i < p.tq && c < p.d) dq[(head * p.tq + mine + i) * p.d + c] = store<T>(o[i][j] * A(p.scale));
                }
        }
    }
}

// dk and dv, those that are there.
LAUNCH_BOUNDS(64, 6)
KERNEL(sdpa_columns,
       (maybe<T*> dk, maybe<T*> dv, const acc<T>* stats, const T* q, const Heads& vq, const T* k, const Heads& vk, const T* v, const Heads& vv, const T* g,
        const Heads& vg, maybe<const u8*> allowed, maybe<const T*> added, const Heads& vm, const Scores& p, maybe<const u8*> notes),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    typedef Block<T> B;
    if (none_noted(notes)) return;
    SMEM(uint4, stage, [STAGE<A>]);
    SMEM(uint4, weights, [WEIGHTS<A>]);
    SMEM(int, odd, [1]);
    const B block(stage, weights, odd);
    i64 k_width = dk ? p.d : 0, v_width = dv ? p.dv : 0, widest = k_width > v_width ? k_width : v_width;
    i64 tiles = (p.tk + B::M - 1) / B::M, chunks = (widest + B::M - 1) / B::M, each = p.heads / p.group * chunks;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < each * tiles; item += gridDim.x) {
        // Early keys, which the most queries see, come first.
        i64 j0 = item / each * B::M, key_head = item % each / chunks, c0 = item % chunks * B::M;
        if (notes && !noted<B::M>(notes, key_head, p.tk, j0)) continue;
        const Matrix<T> K(k, vk, key_head, p.tk, p.d), V(v, vv, key_head, p.tk, p.dv);
        A k_sum[4][4] = {}, v_sum[4][4] = {};
        const Span queries = queries_of_tile(p, j0, least(j0 + B::M, p.tk));
#pragma unroll 1
        for (i64 head = key_head * p.group; head < (key_head + 1) * p.group; head++) {
            const Matrix<T> Q(q, vq, head, p.tq, p.d), G(g, vg, head, p.tq, p.dv);
            const Masks<T> mask(allowed, added, vm, head);
#pragma unroll 1
            for (i64 i0 = queries.first; i0 < queries.end; i0 += B::M) {
                i64 mine = i0 + 4 * block.ty;
                A s[4][4], ds[4][4] = {}, m[4], inverse[4], delta[4];
                if (dk) {
                    block.dot(G, i0, V, j0, ds);
                    drop(p, head, mine, j0 + 4 * block.tx, ds);
                }
                block.dot(Q, i0, K, j0, s);
                read_stats(stats, 2, p, head, mine, delta);
                centre(p, true, delta, s, ds);
                mask.apply(p, mine, j0 + 4 * block.tx, s);
                read_stats(stats, 0, p, head, mine, m);
                read_stats(stats, 1, p, head, mine, inverse);
                cotangents(m, inverse, s, ds);
                if (c0 < v_width) {
                    drop(p, head, mine, j0 + 4 * block.tx, s);
                    block.multiply(s, false, G, i0, c0, v_sum);
                }
                if (c0 < k_width) block.multiply(ds, false, Q, i0, c0, k_sum);
            }
        }
        // The result's rows are keys.
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                i64 row = j0 + 4 * block.ty + i, c = c0 + 4 * block.tx + j;
                if (row < p.tk && c < k_width) dk[(key_head * p.tk + row) * p.d + c] = store<T>(k_sum[i][j] * A(p.scale));
                if (row < p.tk && c < v_width) dv[(key_head * p.tk + row) * p.dv + c] = store<T>(v_sum[i][j]);
            }
    }
}

// The cotangent of an additive mask of `slices` matrices rows x cols, each extent 1 or that of the scores; `slice` finds the
// matrix that a head reads. A block owns a tile of one of them, and goes through all heads that read it.
LAUNCH_BOUNDS(64, 6)
KERNEL(sdpa_mask,
       (T* bar, i64 slices, i64 rows, i64 cols, const View& slice, const acc<T>* stats, const T* q, const Heads& vq, const T* k, const Heads& vk, const T* v,
        const Heads& vv, const T* g, const Heads& vg, maybe<const u8*> allowed, maybe<const T*> added, const Heads& vm, const Scores& p),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    typedef Block<T> B;
    SMEM(uint4, stage, [STAGE<A>]);
    SMEM(uint4, weights, [WEIGHTS<A>]);
    SMEM(int, odd, [1]);
    const B block(stage, weights, odd);
    // An axis of extent 1 is summed as a whole.
    i64 down = rows > 1 ? (rows + B::M - 1) / B::M : 1, across = cols > 1 ? (cols + B::M - 1) / B::M : 1;
#pragma unroll 1
    for (i64 item = blockIdx.x; item < slices * down * across; item += gridDim.x) {
        i64 at = item / (down * across), top = item / across % down * B::M, left = item % across * B::M;
        A sum[4][4] = {};
#pragma unroll 1
        for (i64 head = 0; head < p.heads; head++) {
            if (offset_of(slice, head) != at) continue;
            const Matrix<T> Q(q, vq, head, p.tq, p.d), K(k, vk, head / p.group, p.tk, p.d), V(v, vv, head / p.group, p.tk, p.dv), G(g, vg, head, p.tq, p.dv);
            const Masks<T> mask(allowed, added, vm, head);
            i64 end = rows > 1 ? least(top + B::M, p.tq) : p.tq;
#pragma unroll 1
            for (i64 i0 = top; i0 < end; i0 += B::M) {
                const Span keys = keys_of_tile(p, i0, least(i0 + B::M, p.tq));
                // A tile of the mask keeps its columns; a sum over them follows the keys.
                i64 first = cols > 1 ? left : keys.first, last = cols > 1 ? least(left + B::M, keys.end) : keys.end, mine = i0 + 4 * block.ty;
                if (first + B::M <= keys.first) continue;
#pragma unroll 1
                for (i64 j0 = first; j0 < last; j0 += B::M) {
                    A s[4][4], ds[4][4], m[4], inverse[4], delta[4];
                    block.dot(G, i0, V, j0, ds);
                    drop(p, head, mine, j0 + 4 * block.tx, ds);
                    block.dot(Q, i0, K, j0, s);
                    // The mask is added after the cap.
                    read_stats(stats, 2, p, head, mine, delta);
                    centre(p, false, delta, s, ds);
                    mask.apply(p, mine, j0 + 4 * block.tx, s);
                    read_stats(stats, 0, p, head, mine, m);
                    read_stats(stats, 1, p, head, mine, inverse);
                    cotangents(m, inverse, s, ds);
#pragma unroll
                    for (int i = 0; i < 4; i++)
#pragma unroll
                        for (int j = 0; j < 4; j++) sum[i][j] += ds[i][j];
                }
            }
        }
        __syncthreads();
        block.put(sum, false);
        __syncthreads();
        // Thread e owns element e of the tile, or its row e, or its column e, or all of it.
        i64 height = rows > 1 ? least(B::M, rows - top) : 1, width = cols > 1 ? least(B::M, cols - left) : 1;
        for (int e = int(threadIdx.x); e < int(height * width); e += B::THREADS) {
            int i = e / int(width), j = e % int(width);
            A total = A(0);
            for (int r = 0; r < (rows > 1 ? 1 : B::M); r++)
                for (int c = 0; c < (cols > 1 ? 1 : B::M); c++) total += block.weights[(i + r) * PITCH + j + c];
            bar[at * rows * cols + (top + i) * cols + left + j] = store<T>(total);
        }
        __syncthreads();
    }
}
