// Kernels with planted bugs: what the emulator must notice. A program of its own; tests/device/kernels.rs builds it and reads its lines
//
//     <case> <order> <ok | wrong | error: what the emulator says>
//
// Every case but the first of its kind is the same kernel with one mistake. A GPU would run most of them and be right
// nearly always.
#include "emulator.h"

#include "common/async.cuh"
#include "common/mma.cuh"
#include "common/reduce.cuh"
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

extern "C" const char* cuemu_last_error();
extern "C" void* cuemu_alloc(size_t bytes);
extern "C" void cuemu_free(void* p, size_t bytes);

enum Bug {
    NONE,
    NO_BARRIER_BEFORE_PARTIALS_ARE_READ,
    NO_BARRIER_AFTER_PARTIALS_ARE_READ,
    A_LANE_STAYS_AWAY,
    NO_BARRIER_AFTER_THE_COPIES,
    NO_BARRIER_BEFORE_THE_NEXT_COPIES,
    NO_WAIT_FOR_THE_STAGE,
    NO_WAIT_FOR_THE_LAST_STAGE,
    WAIT_LETS_TOO_MANY_PASS,
    WRONG_ROWS_OF_THE_MATRIX,
    READS_PAST_THE_END,
    WRITES_PAST_THE_END,
    WRITES_PAST_SHARED,
    READS_SHARED_UNWRITTEN,
    RETURNS_BEFORE_THE_BARRIER,
    TWO_BARRIERS_FOR_ONE,
    LANES_IN_DIFFERENT_OPERATIONS,
    NEVER_WAITS_FOR_A_COPY,
    DEPENDS_ON_ANOTHER_BLOCK,
    RECURSES_WITHOUT_END,
};

// ---- softmax of rows, a block for each: reductions through shared memory

template <int BUG, class R> DEVICE f32 reduce(f32 v, f32 (&partial)[32]) {
    if (BUG != A_LANE_STAYS_AWAY || threadIdx.x % 32 < 31) v = warp_reduce<R>(v);
    if (lane_index() == 0) partial[warp_index()] = v;
    if (BUG != NO_BARRIER_BEFORE_PARTIALS_ARE_READ) __syncthreads();
    v = lane_index() < warp_count() ? partial[lane_index()] : R::template start<f32>();
    v = warp_reduce<R>(v);
    if (BUG != NO_BARRIER_AFTER_PARTIALS_ARE_READ) __syncthreads();
    return v;
}

template <int BUG> void softmax(f32* y, const f32* x, i32 cols) {
    SMEM(f32, partial, [32]);
    const f32* from = x + i64(blockIdx.x) * cols;
    f32* to = y + i64(blockIdx.x) * cols;
    f32 most = -Limits<f32>::infinity(), sum = 0;
    for (i32 i = i32(threadIdx.x); i < cols; i += i32(blockDim.x)) most = max_nan(most, from[i]);
    most = reduce<BUG, MaxOf>(most, partial);
    for (i32 i = i32(threadIdx.x); i < cols; i += i32(blockDim.x)) sum += m_exp(from[i] - most);
    sum = reduce<BUG, SumOf>(sum, partial);
    for (i32 i = i32(threadIdx.x); i < cols; i += i32(blockDim.x)) to[i] = m_exp(from[i] - most) / sum;
}

// ---- c = a b' for a [m, k], b [n, k] of bf16: two stages of asynchronous copies, tensor cores

template <int BUG> void gemm(f32* c, const bf16* a, const bf16* b, i32 m, i32 n, i32 k) {
    constexpr i32 TILE = 64, DEPTH = 32, LINE = DEPTH + 8;
    DYN_SMEM(bf16, shared);
    bf16 *as = shared, *bs = shared + 2 * TILE * LINE;
    i32 t = i32(threadIdx.x), warp = t / 32, l = t % 32;
    i32 row = i32(blockIdx.y) * TILE, col = i32(blockIdx.x) * TILE, wr = warp % 2 * 32, wc = warp / 2 * 32;
    auto fetch = [&](i32 stage, i32 depth) {
        for (i32 i = 0; i < 2; i++) {
            i32 piece = t + i * 128, r = piece / 4, q = piece % 4 * 8;
            bool in_a = row + r < m, in_b = col + r < n;
            copy_async(&as[(stage * TILE + r) * LINE + q], a + i64(in_a ? row + r : 0) * k + depth + q, in_a);
            copy_async(&bs[(stage * TILE + r) * LINE + q], b + i64(in_b ? col + r : 0) * k + depth + q, in_b);
        }
        copy_commit();
    };
    f32 sum[2][4][4] = {};
    i32 steps = k / DEPTH;
    fetch(0, 0);
    for (i32 s = 0; s < steps; s++) {
        if (s + 1 < steps) {
            fetch((s + 1) % 2, (s + 1) * DEPTH);
            if (BUG == WAIT_LETS_TOO_MANY_PASS) copy_wait<2>();
            else if (BUG != NO_WAIT_FOR_THE_STAGE) copy_wait<1>();
        } else if (BUG != NO_WAIT_FOR_THE_LAST_STAGE) {
            copy_wait<0>();
        }
        if (BUG != NO_BARRIER_AFTER_THE_COPIES) __syncthreads();
        const bf16 *ta = as + s % 2 * TILE * LINE, *tb = bs + s % 2 * TILE * LINE;
        for (i32 d = 0; d < DEPTH; d += 16) {
            u32 fa[2][4], fb[4][2];
            for (i32 i = 0; i < 2; i++)
                load_matrices(fa[i], &ta[(wr + i * 16 + (BUG == WRONG_ROWS_OF_THE_MATRIX ? l % 8 : l % 16)) * LINE + d + l / 16 * 8]);
            for (i32 j = 0; j < 2; j++) {
                u32 r[4];
                load_matrices(r, &tb[(wc + j * 16 + l % 8 + l / 16 * 8) * LINE + d + l / 8 % 2 * 8]);
                fb[2 * j][0] = r[0], fb[2 * j][1] = r[1], fb[2 * j + 1][0] = r[2], fb[2 * j + 1][1] = r[3];
            }
            for (i32 i = 0; i < 2; i++)
                for (i32 j = 0; j < 4; j++) mma<bf16>(sum[i][j], fa[i], fb[j]);
        }
        if (BUG != NO_BARRIER_BEFORE_THE_NEXT_COPIES) __syncthreads();
    }
    for (i32 i = 0; i < 2; i++)
        for (i32 j = 0; j < 4; j++)
            for (i32 q = 0; q < 4; q++) {
                i32 r = row + wr + i * 16 + l / 4 + q / 2 * 8, s = col + wc + j * 8 + l % 4 * 2 + q % 2;
                if (r < m && s < n) c[i64(r) * n + s] = sum[i][j][q];
            }
}

// ---- y[i] = the sum of x[0] to x[n - 1] of the block's own stretch, in other wrong ways

static i32 dive(volatile i32* depth) {
    volatile char frame[4096];
    frame[0] = char(*depth = *depth + 1);
    return *depth > 0 ? dive(depth) + frame[0] : 0;
}

template <int BUG> void stretch(f32* y, const f32* x, i32 n) {
    SMEM(f32, mine, [64]);
    SMEM(bf16, staged, [512]);
    i32 t = i32(threadIdx.x), i = i32(blockIdx.x) * 64 + t;
    (void)staged;
    if (BUG == RETURNS_BEFORE_THE_BARRIER && i >= n) return;
    f32 v = i < n ? x[BUG == READS_PAST_THE_END ? i + 4 : i] : 0;
    if (BUG != READS_SHARED_UNWRITTEN || t != 5) mine[t] = v;
    if (BUG == WRITES_PAST_SHARED && t == n % 64 + 3) mine[t + 1] = v;
    if (BUG == NEVER_WAITS_FOR_A_COPY) copy_async(&staged[t * 8], x), copy_commit();
    if (BUG == TWO_BARRIERS_FOR_ONE && t < 32) __syncthreads();
    else __syncthreads();
    f32 before = 0;
    if (BUG == DEPENDS_ON_ANOTHER_BLOCK && blockIdx.x > 0) before = y[i64(blockIdx.x) * 64 - 1] - y[i64(blockIdx.x) * 64 - 1];
    if (BUG == LANES_IN_DIFFERENT_OPERATIONS) {
        if (t % 2) __syncwarp();
        else before = __shfl_xor_sync(0xffffffffu, before, 1);
    }
    if (BUG == RECURSES_WITHOUT_END && t == 3) {
        volatile i32 depth = 1;
        before = f32(dive(&depth));
    }
    f32 sum = before;
    for (i32 k = 0; k < 64; k++) sum += mine[k];
    if (i < n) y[BUG == WRITES_PAST_THE_END ? i + 4 : i] = sum;
}

// ---- running them

template <class T> struct Memory {
    T* p;
    i64 n;
    explicit Memory(i64 n) : p(static_cast<T*>(cuemu_alloc(size_t(n) * sizeof(T)))), n(n) {}
    Memory(const Memory&) = delete;
    ~Memory() { cuemu_free(p, size_t(n) * sizeof(T)); }
};

static void report(const char* name, unsigned order, int failed, double error, double limit) {
    // Written so that NaN is wrong.
    if (failed) printf("%s %u error: %s\n", name, order, cuemu_last_error());
    else printf("%s %u %s\n", name, order, error <= limit ? "ok" : "wrong");
}

static const unsigned ORDERS[] = {0, 1, 7};

// The larger one; NaN wins.
static double worst(double a, double b) { return a > b || a != a ? a : b; }

template <int BUG> void try_softmax(const char* name) {
    i32 rows = 37, cols = 333;
    Memory<f32> x(rows * cols), y(rows * cols);
    for (i64 i = 0; i < x.n; i++) x.p[i] = f32(i * 7919 % 1000) / 100;
    for (unsigned order : ORDERS) {
        memset(y.p, 0xff, size_t(y.n) * sizeof(f32));
        unsigned grid[6] = {unsigned(rows), 1, 1, 256, 1, 1};
        void* params[] = {&y.p, &x.p, &cols};
        int failed = cuemu::launch("softmax", softmax<BUG>, grid, 0, order, params);
        double error = 0;
        for (i32 r = 0; r < rows; r++) {
            double sum = 0;
            for (i32 i = 0; i < cols; i++) sum += exp(double(x.p[r * cols + i]) - 10);
            for (i32 i = 0; i < cols; i++) error = worst(error, fabs(exp(double(x.p[r * cols + i]) - 10) / sum - double(y.p[r * cols + i])));
        }
        report(name, order, failed, error, 1e-6);
    }
}

template <int BUG> void try_gemm(const char* name) {
    i32 m = 100, n = 72, k = 128;
    Memory<bf16> a(m * k), b(n * k);
    Memory<f32> c(m * n);
    for (i64 i = 0; i < a.n; i++) a.p[i] = store<bf16>(f32(i * 31 % 17 - 8) / 8);
    for (i64 i = 0; i < b.n; i++) b.p[i] = store<bf16>(f32(i * 17 % 23 - 11) / 8);
    for (unsigned order : ORDERS) {
        memset(c.p, 0xff, size_t(c.n) * sizeof(f32));
        unsigned grid[6] = {2, 2, 1, 128, 1, 1};
        void* params[] = {&c.p, &a.p, &b.p, &m, &n, &k};
        int failed = cuemu::launch("gemm", gemm<BUG>, grid, 4 * 64 * 40 * sizeof(bf16), order, params);
        double error = 0;
        for (i32 i = 0; i < m; i++)
            for (i32 j = 0; j < n; j++) {
                double sum = 0;
                for (i32 d = 0; d < k; d++) sum += double(load(a.p[i * k + d])) * double(load(b.p[j * k + d]));
                error = worst(error, fabs(sum - double(c.p[i * n + j])));
            }
        report(name, order, failed, error, 1e-4);
    }
}

template <int BUG> void try_stretch(const char* name) {
    i32 n = 252;
    Memory<f32> x(n), y(n);
    for (i64 i = 0; i < n; i++) x.p[i] = f32(i % 7);
    for (unsigned order : ORDERS) {
        memset(y.p, 0xff, size_t(n) * sizeof(f32));
        unsigned grid[6] = {4, 1, 1, 64, 1, 1};
        void* params[] = {&y.p, &x.p, &n};
        int failed = cuemu::launch("stretch", stretch<BUG>, grid, 0, order, params);
        double error = 0;
        for (i32 i = 0; i < n; i++) {
            double sum = 0;
            for (i32 k = i / 64 * 64; k < n && k < i / 64 * 64 + 64; k++) sum += double(x.p[k]);
            error = worst(error, fabs(sum - double(y.p[i])));
        }
        report(name, order, failed, error, 0);
    }
}

// Launches from several threads at once, among them ones that fail, each with its own message.
static void try_together() {
    unsigned wrong = 0;
    auto one = [&wrong](int who) {
        i32 n = 4096 * (who + 1);
        Memory<f32> x(n), y(n);
        for (i64 i = 0; i < n; i++) x.p[i] = 1;
        for (int round = 0; round < 20; round++) {
            unsigned grid[6] = {unsigned(n) / 64, 1, 1, 64, 1, 1};
            void* params[] = {&y.p, &x.p, &n};
            bool bad = (who + round) % 3 == 0;
            int failed = bad ? cuemu::launch("past", stretch<WRITES_PAST_THE_END>, grid, 0, unsigned(round), params)
                             : cuemu::launch("stretch", stretch<NONE>, grid, 0, unsigned(round), params);
            bool right = bad ? failed && strncmp(cuemu_last_error(), "past: invalid memory access", 27) == 0 : !failed && y.p[n - 1] == 64;
            if (!right) __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
        }
    };
    std::thread threads[4] = {std::thread(one, 0), std::thread(one, 1), std::thread(one, 2), std::thread(one, 3)};
    for (auto& t : threads) t.join();
    printf("LAUNCHES_SIDE_BY_SIDE 0 %s\n", wrong ? "wrong" : "ok");
}

// Launches that no GPU takes: the sound kernel, spread in another way.
static void try_launch(const char* name, unsigned x, unsigned y, unsigned z, unsigned threads, size_t shared) {
    i32 n = 252;
    Memory<f32> in(n), out(n);
    unsigned grid[6] = {x, y, z, threads, 1, 1};
    void* params[] = {&out.p, &in.p, &n};
    int code = cuemu::launch("stretch", stretch<NONE>, grid, shared, 0, params);
    // Refused (1), and not run into a fault (2).
    if (code == 1) printf("%s 0 error: %s\n", name, cuemu_last_error());
    else printf("%s 0 ok\n", name);
}

// Blocks of one size, freed and taken again, lie at other distances each time: what depends on addresses shows.
static void try_addresses() {
    std::vector<uintptr_t> steps;
    for (int i = 0; i < 64; i++) {
        Memory<f32> x(1000), y(1000);
        uintptr_t a = reinterpret_cast<uintptr_t>(x.p), b = reinterpret_cast<uintptr_t>(y.p), step = a > b ? a - b : b - a;
        if (std::find(steps.begin(), steps.end(), step) == steps.end()) steps.push_back(step);
    }
    printf("addresses_differ 0 %s\n", steps.size() > 2 ? "ok" : "wrong");
}

#define TRY(kernel, bug) try_##kernel<bug>(bug == NONE ? #kernel : #bug)

int main() {
    TRY(softmax, NONE);
    TRY(softmax, NO_BARRIER_BEFORE_PARTIALS_ARE_READ);
    TRY(softmax, NO_BARRIER_AFTER_PARTIALS_ARE_READ);
    TRY(softmax, A_LANE_STAYS_AWAY);
    TRY(gemm, NONE);
    TRY(gemm, NO_BARRIER_AFTER_THE_COPIES);
    TRY(gemm, NO_BARRIER_BEFORE_THE_NEXT_COPIES);
    TRY(gemm, NO_WAIT_FOR_THE_STAGE);
    TRY(gemm, NO_WAIT_FOR_THE_LAST_STAGE);
    TRY(gemm, WAIT_LETS_TOO_MANY_PASS);
    TRY(gemm, WRONG_ROWS_OF_THE_MATRIX);
    TRY(stretch, NONE);
    TRY(stretch, READS_PAST_THE_END);
    TRY(stretch, WRITES_PAST_THE_END);
    TRY(stretch, WRITES_PAST_SHARED);
    TRY(stretch, READS_SHARED_UNWRITTEN);
    TRY(stretch, RETURNS_BEFORE_THE_BARRIER);
    TRY(stretch, TWO_BARRIERS_FOR_ONE);
    TRY(stretch, LANES_IN_DIFFERENT_OPERATIONS);
    TRY(stretch, NEVER_WAITS_FOR_A_COPY);
    TRY(stretch, DEPENDS_ON_ANOTHER_BLOCK);
    TRY(stretch, RECURSES_WITHOUT_END);
    try_together();
    try_launch("TOO_MANY_THREADS", 4, 1, 1, 1025, 0);
    try_launch("NO_THREADS", 4, 1, 1, 0, 0);
    try_launch("EMPTY_GRID", 0, 1, 1, 64, 0);
    try_launch("TOO_MANY_BLOCKS", 0x80000000u, 1, 1, 64, 0);
    try_launch("TOO_MANY_BLOCKS_ALONG_Y", 1, 65536, 1, 64, 0);
    try_launch("TOO_MANY_BLOCKS_ALONG_Z", 1, 1, 65536, 64, 0);
    try_launch("TOO_MUCH_SHARED_MEMORY", 4, 1, 1, 64, (227 << 10) + 1);
    try_addresses();
}
