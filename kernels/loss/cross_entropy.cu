// Cross-entropy of logits with class targets, or with probabilities of the classes: neither probabilities nor their logarithms are ever stored.
//
// Math: loss = sum_j q_j (log sum_k e^(x_k - m) - (x_j - m)) with m the row's maximum, q = `on` at the target plus `spread`
// w_j everywhere, plus z w_y lse^2; the derivative is (softmax_j (sum q + 2 z w_y lse) - q_j) g.
// Mapping: one block per row; a thread takes 16 bytes at a time from the first aligned place on.
// Memory: forward reads the logits once: maximum and sum of exponentials grow together, the sum rescaled when the maximum
// moves. Backward reads them once and writes once (twice the reads when the saved numbers are missing; label smoothing reads
// them once more forward).
// Aliasing: the derivative may be written over the logits; all else is fresh memory.
// Determinism: the order of additions follows from the row's length, its alignment and the size of the block.
#include "common/pack.cuh"
#include "common/reduce.cuh"

// f(j, v) for all elements j of a row, where v holds elements j, j + 1, …: 16 bytes of them, or one at the row's ends.
template <class T, class F> DEVICE void read_row(const T* x, i64 n, F f) {
    constexpr int N = PACK<T>;
    i64 head = i64((16 - reinterpret_cast<u64>(x) % 16) % 16 / sizeof(T));
    head = head < n ? head : n;
    i64 packs = (n - head) / N;
#pragma unroll 2
    for (i64 k = threadIdx.x; k < packs; k += blockDim.x) {
        Pack<T, N> p;
        p.load(x + head + k * N);
        f(head + k * N, p.v);
    }
    for (i64 k = threadIdx.x; k < n - packs * N; k += blockDim.x) {
        i64 j = k < head ? k : k + packs * N;
        T v[1] = {x[j]};
        f(j, v);
    }
}

// y_j = f(j, x_j) for a row.
template <class T, class F> DEVICE void map_row(T* y, const T* x, i64 n, F f) {
    constexpr int N = PACK<T>;
    i64 head = i64((16 - reinterpret_cast<u64>(y) % 16) % 16 / sizeof(T));
    head = head < n ? head : n;
    i64 packs = (reinterpret_cast<u64>(x) - reinterpret_cast<u64>(y)) % 16 == 0 ? (n - head) / N : 0;
#pragma unroll 2
    for (i64 k = threadIdx.x; k < packs; k += blockDim.x) {
        Pack<T, N> p;
        i64 j = head + k * N;
        p.load(x + j);
#pragma unroll
        for (int i = 0; i < N; i++) p.v[i] = store<T>(f(j + i, load(p.v[i])));
        p.store(y + j);
    }
    for (i64 k = threadIdx.x; k < n - packs * N; k += blockDim.x) {
        i64 j = k < head ? k : k + packs * N;
        y[j] = store<T>(f(j, load(x[j])));
    }
}

// Largest element m of a row and the sum of e^(x - m); 0 for a row of -infinity only.
template <class T> DEVICE void row_stats(const T* x, i64 n, acc<T> (&partial)[32], acc<T>& m, acc<T>& sum) {
    typedef acc<T> A;
    const A lowest = -Limits<A>::infinity();
    A top = lowest, s = A(0);
    read_row(x, n, [&](i64, const auto& v) {
        constexpr int M = sizeof(v) / sizeof(T);
        A next = top, e = A(0);
#pragma unroll
        for (int j = 0; j < M; j++) next = max_nan(next, load(v[j]));
        if (next == lowest) return;
#pragma unroll
        for (int j = 0; j < M; j++) e += m_exp(load(v[j]) - next);
        s = next == top ? s + e : s * m_exp(top - next) + e;
        top = next;
    });
    m = block_reduce<MaxOf>(top, partial);
    sum = block_reduce<SumOf>(m == lowest ? A(0) : s * m_exp(top - m), partial);
}

// The target distribution of a row: `on` at the target, plus `spread` times w at every class.
template <class A> struct TargetRow {
    A on, spread, total;
    // `total` multiplies the probabilities in the derivative: the distribution's sum, and the z-loss's share.
    DEVICE TargetRow(f64 smoothing, f64 z, A w_y, A sum_w, i64 classes, A lse) : on(A(1 - smoothing) * w_y), spread(A(smoothing / f64(classes))) {
        total = smoothing == 0 ? on : on + spread * sum_w;
        if (z != 0) total += A(2 * z) * w_y * lse;
    }
};

// stats = {m, sum} of every row, {-infinity, 0} where the target is ignored. Writes y if `losses` is missing.
LAUNCH_BOUNDS(512, 2)
KERNEL(cross_entropy_fwd,
       (T* y, maybe<acc<T>*> losses, acc<T>* stats, const T* x, const i64* of, maybe<const T*> w, const f64* weight, i64 rows, i64 classes, f64 smoothing, f64 z),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
#pragma unroll 1
    for (i64 i = blockIdx.x; i < rows; i += gridDim.x) {
        i64 t = of[i];
        const T* row = x + i * classes;
        A m = -Limits<A>::infinity(), sum = A(0), loss = A(0);
        // The whole block goes one way.
        if (t >= 0) row_stats(row, classes, partial, m, sum);
        if (t >= 0 && m != -Limits<A>::infinity()) {
            // ln sum - (x - m) keeps what (m + ln sum) - x would lose at a large common offset.
            A w_y = w ? load(w[t]) : A(1), log = m_log(sum), hard = log - (load(row[t]) - m);
            loss = w_y * hard;
            if (smoothing != 0) {
                A sum_w = A(weight[1]), shifted = A(0);
                TargetRow<A> q(smoothing, 0, w_y, sum_w, classes, A(0));
                read_row(row, classes, [&](i64 j, const auto& v) {
                    constexpr int M = sizeof(v) / sizeof(T);
#pragma unroll
                    for (int k = 0; k < M; k++) shifted = m_fma(load(v[k]) - m, w ? load(w[j + k]) : A(1), shifted);
                });
                shifted = block_reduce<SumOf>(shifted, partial);
                loss = q.on * hard + q.spread * (sum_w * log - shifted);
            }
            if (z != 0) loss += A(z) * w_y * (m + log) * (m + log);
        }
        if (threadIdx.x == 0) {
            stats[2 * i] = m;
            stats[2 * i + 1] = sum;
            if (losses) losses[i] = loss;
            else y[i] = store<T>(loss);
        }
    }
}

LAUNCH_BOUNDS(512, 2)
KERNEL(cross_entropy_vjp,
       (T* y, const T* x, const i64* of, maybe<const T*> w, const f64* weight, maybe<const T*> g, maybe<const acc<T>*> stats, i64 rows,
        i64 classes, f64 smoothing, f64 z, i32 each, i32 mean),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
    const A lowest = -Limits<A>::infinity(), scale = A(!mean ? 1 : weight[0] == 0 ? 0 : 1 / weight[0]), sum_w = A(weight[1]);
#pragma unroll 1
    for (i64 i = blockIdx.x; i < rows; i += gridDim.x) {
        i64 t = of[i];
        const T* row = x + i * classes;
        A m = lowest, sum = A(0);
        if (t >= 0) {
            if (stats) {
                m = stats[2 * i];
                sum = stats[2 * i + 1];
            } else {
                row_stats(row, classes, partial, m, sum);
            }
        }
        if (m == lowest) {
            map_row(y + i * classes, row, classes, [](i64, A) { return A(0); });
            continue;
        }
        A w_y = w ? load(w[t]) : A(1), r = g ? load(g[each ? i : 0]) * scale : scale;
        TargetRow<A> q(smoothing, z, w_y, sum_w, classes, z != 0 ? m + m_log(sum) : A(0));
        A a = q.total / sum * r, b = q.spread * r;
        // At the target the probability and q nearly cancel: their difference is taken in full precision, before scaling.
        A at_target = m_fma(m_exp(load(row[t]) - m) / sum, q.total, -(q.spread * w_y + q.on)) * r;
        bool weighted = w && smoothing != 0;
        // y and x may be the same memory: everyone has read the target's logit before anyone writes.
        __syncthreads();
        map_row(y + i * classes, row, classes, [&](i64 j, A v) {
            A f = m_fma(m_exp(v - m), a, weighted ? -(b * load(w[j])) : -b);
            return j == t ? at_target : f;
        });
    }
}

// y = -q of every row, divided by the weight of a mean; 0 for ignored targets. Second derivatives of half types compute in f32.
KERNEL(cross_entropy_targets,
       (T* y, const i64* of, maybe<const T*> w, const f64* weight, i64 rows, i64 classes, f64 smoothing, i32 mean),
       f64, f32) {
    f64 scale = !mean ? 1 : weight[0] == 0 ? 0 : 1 / weight[0];
#pragma unroll 1
    for (i64 i = blockIdx.x; i < rows; i += gridDim.x) {
        i64 t = of[i];
#pragma unroll 1
        for (i64 j = threadIdx.x; j < classes; j += blockDim.x) {
            f64 share = (j == t ? 1 - smoothing : 0) + smoothing / f64(classes);
            y[i * classes + j] = store<T>(acc<T>(t < 0 ? 0 : -scale * (w ? f64(load(w[j])) : 1) * share));
        }
    }
}

// ---- probabilities as targets: p = w ((1 - smoothing) q + smoothing / classes)

template <class A> struct Share {
    A sharp, spread;
    DEVICE Share(f64 smoothing, i64 classes) : sharp(A(1 - smoothing)), spread(A(smoothing / f64(classes))) {}
    DEVICE A of(A q, A w) const { return w * m_fma(q, sharp, spread); }
};

// What the derivative needs of a row: m, the sum of exponentials, and what these are multiplied with; and the loss.
template <class T>
DEVICE void soft_row(const T* x, const T* q, const T* w, i64 n, f64 smoothing, f64 z, acc<T> (&partial)[32], acc<T> (&s)[3], acc<T>& loss) {
    typedef acc<T> A;
    row_stats(x, n, partial, s[0], s[1]);
    A m = s[0];
    s[2] = loss = A(0);
    if (m == -Limits<A>::infinity()) return;
    Share<A> share(smoothing, n);
    A total = A(0), shifted = A(0), mass = A(0);
    read_row(x, n, [&](i64 j, const auto& v) {
        constexpr int M = sizeof(v) / sizeof(T);
#pragma unroll
        for (int k = 0; k < M; k++) {
            A u = load(q[j + k]), c = w ? load(w[j + k]) : A(1), p = share.of(u, c);
            total += p;
            mass = m_fma(u, c, mass);
            // Classes without a share do not count, whatever their logit is.
            if (p != A(0)) shifted = m_fma(p, load(v[k]) - m, shifted);
        }
    });
    total = block_reduce<SumOf>(total, partial);
    shifted = block_reduce<SumOf>(shifted, partial);
    A log = m_log(s[1]), lse = m + log;
    s[2] = total;
    loss = total * log - shifted;
    if (z != 0) {
        mass = A(z) * block_reduce<SumOf>(mass, partial);
        s[2] += 2 * mass * lse;
        loss += mass * lse * lse;
    }
}

// stats = the three numbers of every row. Writes y if `losses` is missing.
LAUNCH_BOUNDS(512, 2)
KERNEL(cross_entropy_soft,
       (T* y, maybe<acc<T>*> losses, acc<T>* stats, const T* x, const T* q, maybe<const T*> w, i64 rows, i64 classes, f64 smoothing, f64 z),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
#pragma unroll 1
    for (i64 i = blockIdx.x; i < rows; i += gridDim.x) {
        A s[3], loss;
        soft_row<T>(x + i * classes, q + i * classes, w, classes, smoothing, z, partial, s, loss);
        if (threadIdx.x == 0) {
            for (int k = 0; k < 3; k++) stats[3 * i + k] = s[k];
            if (losses) losses[i] = loss;
            else y[i] = store<T>(loss);
        }
    }
}

// The cotangents of the logits, or of the probabilities if `by_targets`; `scale` is what a loss counts in the result.
LAUNCH_BOUNDS(512, 2)
KERNEL(cross_entropy_soft_vjp,
       (T* y, const T* x, const T* q, maybe<const T*> w, const T* g, maybe<const acc<T>*> stats, i64 rows, i64 classes, f64 smoothing, f64 z,
        f64 scale, i32 each, i32 by_targets),
       f64, f32, bf16, f16) {
    typedef acc<T> A;
    SMEM(A, partial, [32]);
    Share<A> share(smoothing, classes);
#pragma unroll 1
    for (i64 i = blockIdx.x; i < rows; i += gridDim.x) {
        const T *row = x + i * classes, *of = q + i * classes;
        A s[3], loss;
        if (stats) {
            for (int k = 0; k < 3; k++) s[k] = stats[3 * i + k];
        } else {
            soft_row<T>(row, of, w, classes, smoothing, z, partial, s, loss);
        }
        A m = s[0], r = load(g[each ? i : 0]) * A(scale);
        if (m == -Limits<A>::infinity()) {
            map_row(y + i * classes, row, classes, [](i64, A) { return A(0); });
        } else if (by_targets) {
            A log = m_log(s[1]), lse = m + log, square = z != 0 ? A(z) * lse * lse : A(0);
            map_row(y + i * classes, row, classes, [&](i64 j, A v) {
                // Not 0 times infinity.
                A own = share.sharp == A(0) ? square : m_fma(share.sharp, log - (v - m), square);
                return (w ? load(w[j]) : A(1)) * own * r;
            });
        } else {
            A slope = s[2] / s[1];
            // The probability and its target may nearly cancel: their difference is taken before it is scaled and rounded.
            map_row(y + i * classes, row, classes, [&](i64 j, A v) {
                return m_fma(m_exp(v - m), slope, -share.of(load(of[j]), w ? load(w[j]) : A(1))) * r;
            });
        }
    }
}

// sum += part: a partial result of a matrix product joins the others in full precision.
KERNEL(cross_entropy_gather, (acc<T>* sum, const T* part, i64 n), bf16, f16) {
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) sum[i] += load(part[i]);
}

// y = sum, rounded once.
KERNEL(cross_entropy_round, (T* y, const acc<T>* sum, i64 n), bf16, f16) {
#pragma unroll 1
    for (i64 i = thread_index(); i < n; i += thread_count()) y[i] = store<T>(sum[i]);
}
