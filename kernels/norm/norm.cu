// Layer norm and RMS norm of rows, and their derivatives.
//
// Math         y = v r w + b with v = x - mean (RMS norm: v = x), r = 1 / sqrt(mean of v^2 + eps)
//              with u = v r, h = y_bar w:  x_bar = r (h - [mean of h] - u mean of (h u)); the bracket in layer norm only
//              w_bar = sum over rows of y_bar u,  b_bar = sum over rows of y_bar
//              with a residual r the row is x + r, a result of its own, whose cotangent is added to x_bar
// Mapping      a team of threads per row, common/rows.cuh: the row stays in registers. In the derivative every team walks over
//              rows and adds up the shares of w_bar and b_bar of its own columns in registers; norm_columns adds the teams' rows.
//              Rows that do not fit: x is read again, and norm_parameters takes the columns
// Memory       forward x, y (with a residual x, r, sum, y); derivative x, y_bar, x_bar (and what is added); 2 numbers per row, and a row
//              of w_bar and b_bar per team
// Aliasing     results are fresh memory; x and r may be one tensor
// Tried        not yet timed on a GPU
// Determinism  sums have the shape of team and grid, which follow from the shape of x
#include "common/moments.cuh"
#include "common/rows.cuh"

// N neighbouring parameters, or a value in place of absent ones.
template <int N, class T> DEVICE void parameters(const T* p, i64 at, acc<T> absent, acc<T> (&out)[N]) {
    Pack<T, N> q;
    if (p) q.load(p + at);
#pragma unroll
    for (int j = 0; j < N; j++) out[j] = p ? load(q.v[j]) : absent;
}

template <bool CENTRED, class T, int N>
DEVICE void norm_held(T* y, acc<T>* stats, const T* x, const T* r, T* sum_to, const T* w, const T* b, i64 rows, i32 n, i32 team, acc<T> eps) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        constexpr int K = HELD<T> / N;
        Held<T, N, K> h;
        A mean = A(0), sum = A(0), rest = A(0), squares = A(0);
        h.fetch(x + row * n, n, lane, team, A(0));
        if (r) {
            // The sum is normalised as it is rounded.
            h.template add<true>(r + row * n, n, lane, team, here ? sum_to + row * n : nullptr);
        }
        if (CENTRED) {
            h.each(n, team, [&](A& v) { sum += v; });
            mean = team_reduce<SumOf>(sum, team, partial) / A(n);
            // A second look removes the rounding of the first: constant rows then have variance 0, whatever their offset.
            h.each_real(n, lane, team, [&](A& v) { rest += v - mean; });
            mean += team_reduce<SumOf>(rest, team, partial) / A(n);
        }
        h.each_real(n, lane, team, [&](A& v) {
            v -= mean;
            squares = m_fma(v, v, squares);
        });
        A rstd = A(1) / m_sqrt(team_reduce<SumOf>(squares, team, partial) / A(n) + eps);
        if (!here) return;
        if (lane == 0) {
            stats[2 * row] = mean;
            stats[2 * row + 1] = rstd;
        }
        if (!y) return;
#pragma unroll
        for (int k = 0; k < K; k++) {
            i32 at = h.place(k, lane, team);
            if (at < n) {
                Pack<T, N> out;
                A scale[N], shift[N];
                parameters(w, at, A(1), scale);
                parameters(b, at, A(0), shift);
#pragma unroll
                for (int j = 0; j < N; j++) out.v[j] = store<T>(m_fma(h.v[k * N + j] * rstd, scale[j], shift[j]));
                out.store(y + row * n + at);
            }
        }
    });
}

// The sum of squares.
template <class A> struct Squares : Sums<A> {
    template <int M> static DEVICE A of(const A (&x)[M], i64, i64) {
        A v[M];
#pragma unroll
        for (int i = 0; i < M; i++) v[i] = x[i] * x[i];
        return sum_of(v);
    }
};

template <bool CENTRED, class T>
DEVICE void norm_long(T* y, acc<T>* stats, const T* x, const T* r, T* sum_to, const T* w, const T* b, i64 rows, i64 n, i32 team, acc<T> eps) {
    typedef acc<T> A;
    typedef typename Moments<A>::Part Part;
    SMEM(Part, parts, [32]);
    SMEM(A, partial, [32]);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        const T* from = x + row * n;
        if (r) {
            // The team reads back what it wrote, each thread what others wrote.
            if (here) write_row(sum_to + row * n, from, r + row * n, n, lane, team, [](A a, A b, i64) { return a + b; });
            from = sum_to + row * n;
            __syncthreads();
        }
        A mean = A(0), squares;
        if (CENTRED) {
            // Lanes join in different orders: the first one's result is everyone's.
            Part p = team_reduce<Moments<A>>(row_part<Moments<A>>(from, 0, n, lane, team), team, parts);
            if (threadIdx.x == 0) parts[0] = p;
            __syncthreads();
            p = parts[0];
            __syncthreads();
            mean = load(from[0]) + p.mean;
            squares = p.squares;
        } else {
            squares = team_reduce<SumOf>(row_part<Squares<A>>(from, 0, n, lane, team), team, partial);
        }
        A rstd = A(1) / m_sqrt(squares / A(n) + eps);
        if (!here) return;
        if (lane == 0) {
            stats[2 * row] = mean;
            stats[2 * row + 1] = rstd;
        }
        if (!y) return;
        write_row(y + row * n, from, from, n, lane, team, [&](A v, A, i64 i) {
            return m_fma((v - mean) * rstd, w ? load(w[i]) : A(1), b ? load(b[i]) : A(0));
        });
    });
}

template <bool CENTRED, class T>
DEVICE void norm_rows(T* y, acc<T>* stats, const T* x, const T* r, T* sum, const T* w, const T* b, i64 rows, i64 n, i32 team, acc<T> eps) {
    constexpr int N = PACK<T>;
    bool packs = rows_aligned(x, n) && (!y || aligned<T, N>(y)) && (!r || (aligned<T, N>(r) && aligned<T, N>(sum))) && (!w || aligned<T, N>(w)) && (!b || aligned<T, N>(b));
    if (n > i64(team) * HELD<T>) norm_long<CENTRED>(y, stats, x, r, sum, w, b, rows, n, team, eps);
    else if (packs) norm_held<CENTRED, T, N>(y, stats, x, r, sum, w, b, rows, i32(n), team, eps);
    else norm_held<CENTRED, T, 1>(y, stats, x, r, sum, w, b, rows, i32(n), team, eps);
}

// dw and db have a row per team.
template <bool CENTRED, class T, int N>
DEVICE void norm_vjp_held(T* dx, acc<T>* dw, acc<T>* db, const T* x, const T* w, const T* g, const T* added, const acc<T>* stats, i64 rows, i32 n, i32 team) {
    typedef acc<T> A;
    constexpr int K = HELD<T> / 2 / N;
    SMEM(A, partial, [32]);
    A weight[K * N], bias[K * N];
#pragma unroll
    for (int i = 0; i < K * N; i++) weight[i] = bias[i] = A(0);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        Held<T, N, K> u, h;
        u.fetch(x + row * n, n, lane, team, A(0));
        h.fetch(g + row * n, n, lane, team, A(0));
        A mean = stats[2 * row], rstd = stats[2 * row + 1], along = A(0), total = A(0);
#pragma unroll
        for (int k = 0; k < K; k++) {
            i32 at = u.place(k, lane, team);
            if (at < n) {
                A scale[N];
                parameters(w, at, A(1), scale);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    A &v = u.v[k * N + j], &c = h.v[k * N + j];
                    v = (v - mean) * rstd;
                    if (here) {
                        weight[k * N + j] = m_fma(c, v, weight[k * N + j]);
                        bias[k * N + j] += c;
                    }
                    c *= scale[j];
                    total += c;
                    along = m_fma(c, v, along);
                }
            }
        }
        if (!dx) return;
        A c1 = CENTRED ? team_reduce<SumOf>(total, team, partial) / A(n) : A(0), c2 = team_reduce<SumOf>(along, team, partial) / A(n);
#pragma unroll
        for (int i = 0; i < K * N; i++) u.v[i] = rstd * m_fma(-u.v[i], c2, h.v[i] - c1);
        if (added) u.add(added + row * n, n, lane, team);
        if (here) u.put(dx + row * n, n, lane, team, [](A v, i32) { return v; });
    });
    i64 own = (i64(blockIdx.x) * (blockDim.x / team) + threadIdx.x / team) * n;
    i32 lane = i32(threadIdx.x % team);
#pragma unroll
    for (int k = 0; k < K; k++) {
        i32 at = Held<T, N, K>::place(k, lane, team);
        if (at < n)
#pragma unroll
            for (int j = 0; j < N; j++) {
                if (dw) dw[own + at + j] = weight[k * N + j];
                if (db) db[own + at + j] = bias[k * N + j];
            }
    }
}

template <bool CENTRED, class T>
DEVICE void norm_vjp_rows(T* dx, acc<T>* dw, acc<T>* db, const T* x, const T* w, const T* g, const T* added, const acc<T>* stats, i64 rows, i64 n,
                          i32 team) {
    constexpr int N = PACK<T>;
    bool packs = rows_aligned(x, n) && aligned<T, N>(g) && (!dx || aligned<T, N>(dx)) && (!added || aligned<T, N>(added)) && (!w || aligned<T, N>(w));
    if (packs) norm_vjp_held<CENTRED, T, N>(dx, dw, db, x, w, g, added, stats, rows, i32(n), team);
    else norm_vjp_held<CENTRED, T, 1>(dx, dw, db, x, w, g, added, stats, rows, i32(n), team);
}

// x_bar of rows of any length.
template <bool CENTRED, class T>
DEVICE void norm_vjp_long(T* dx, const T* x, const T* w, const T* g, const T* added, const acc<T>* stats, i64 rows, i64 n, i32 team) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
    for_rows(rows, team, [&](i64 row, bool here, i32 lane) {
        const T *a = x + row * n, *b = g + row * n;
        A mean = stats[2 * row], rstd = stats[2 * row + 1], along = A(0), total = A(0);
        for (i64 i = lane; i < n; i += team) {
            A v = (load(a[i]) - mean) * rstd, c = load(b[i]) * (w ? load(w[i]) : A(1));
            total += c;
            along = m_fma(c, v, along);
        }
        A c1 = CENTRED ? team_reduce<SumOf>(total, team, partial) / A(n) : A(0), c2 = team_reduce<SumOf>(along, team, partial) / A(n);
        if (here) write_row(dx + row * n, a, b, n, lane, team, [&](A v, A c, i64 i) {
            A bar = rstd * m_fma(-(v - mean) * rstd, c2, c * (w ? load(w[i]) : A(1)) - c1);
            return added ? bar + load(added[row * n + i]) : bar;
        });
    });
}

// y is absent where the statistics alone are wanted. With r, what is normalised is x + r, and written to `sum`.
LAUNCH_BOUNDS(512)
KERNEL(norm_fwd, (maybe<T*> y, acc<T>* stats, const T* x, maybe<const T*> r, maybe<T*> sum, maybe<const T*> w, maybe<const T*> b, i64 rows, i64 n,
                  i32 team, i32 centred, acc<T> eps), f64, f32, bf16, f16) {
    if (centred) norm_rows<true>(y, stats, x, r, sum, w, b, rows, n, team, eps);
    else norm_rows<false>(y, stats, x, r, sum, w, b, rows, n, team, eps);
}

// For rows that a team holds, which is for the caller to see: up to team * HELD / 2 elements.
LAUNCH_BOUNDS(512)
KERNEL(norm_vjp, (maybe<T*> dx, maybe<acc<T>*> dw, maybe<acc<T>*> db, const T* x, maybe<const T*> w, const T* g, maybe<const T*> added,
                  const acc<T>* stats, i64 rows, i64 n, i32 team, i32 centred), f64, f32, bf16, f16) {
    if (centred) norm_vjp_rows<true>(dx, dw, db, x, w, g, added, stats, rows, n, team);
    else norm_vjp_rows<false>(dx, dw, db, x, w, g, added, stats, rows, n, team);
}

LAUNCH_BOUNDS(512)
KERNEL(norm_long_vjp, (T* dx, const T* x, maybe<const T*> w, const T* g, maybe<const T*> added, const acc<T>* stats, i64 rows, i64 n, i32 team,
                       i32 centred), f64, f32, bf16, f16) {
    if (centred) norm_vjp_long<true>(dx, x, w, g, added, stats, rows, n, team);
    else norm_vjp_long<false>(dx, x, w, g, added, stats, rows, n, team);
}

// Shares of w_bar and b_bar: row c of dw and db sums rows c * chunk and following. A thread per column.
KERNEL(norm_parameters, (maybe<acc<T>*> dw, maybe<acc<T>*> db, const T* x, const T* g, const acc<T>* stats, i64 rows, i64 n, i64 chunk),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    i64 tiles = (n + blockDim.x - 1) / blockDim.x, chunks = (rows + chunk - 1) / chunk;
#pragma unroll 1
    for (i64 task = blockIdx.x; task < tiles * chunks; task += gridDim.x) {
        i64 c = task / tiles, column = (task - c * tiles) * blockDim.x + threadIdx.x;
        if (column >= n) continue;
        i64 last = c * chunk + chunk < rows ? c * chunk + chunk : rows;
        A weight = A(0), bias = A(0);
#pragma unroll 4
        for (i64 r = c * chunk; r < last; r++) {
            A v = (load(x[r * n + column]) - stats[2 * r]) * stats[2 * r + 1], bar = load(g[r * n + column]);
            weight = m_fma(bar, v, weight);
            bias += bar;
        }
        if (dw) dw[c * n + column] = weight;
        if (db) db[c * n + column] = bias;
    }
}

// y = the sum of `count` rows of n numbers.
KERNEL(norm_columns, (T* y, const acc<T>* parts, i64 count, i64 n, i32 lanes), f64, f32, bf16, f16) {
    reduce_lines<Sums<acc<T>>>(parts, 1, count, n, 1, lanes, [&](i64 column, i64, acc<T> sum) { y[column] = store<T>(sum); });
}
