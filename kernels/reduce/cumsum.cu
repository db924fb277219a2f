// Running sums along rows.
//
// Math         y_k = sum of x_i over i <= k, or over i >= k in reverse
// Mapping      a warp or a block per row walks over tiles of 4 elements per thread: each thread's own sums, then the sum of
//              the threads before it, then the sum of the tiles before
// Memory       x once, y once
// Determinism  the order of additions follows from the row's length
#include "common/pack.cuh"
#include "common/reduce.cuh"

// The sum over the threads of the team before this one, and the sum over all. A team is a warp or the block.
template <class A> DEVICE A sum_before(A v, i32 team, A (&partial)[32], A& all) {
    i32 lane = lane_index();
    A through = v;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        A left = __shfl_up_sync(0xffffffffu, through, step);
        if (lane >= step) through += left;
    }
    A before = __shfl_up_sync(0xffffffffu, through, 1);
    if (lane == 0) before = A(0);
    all = __shfl_sync(0xffffffffu, through, 31);
    if (team == 32) return before;
    if (lane == 31) partial[warp_index()] = through;
    __syncthreads();
    A start = A(0);
    all = A(0);
    for (i32 w = 0; w < warp_count(); w++) {
        if (w == warp_index()) start = all;
        all += partial[w];
    }
    __syncthreads();
    return start + before;
}

KERNEL(cumsum_rows, (T* y, const T* x, i64 rows, i64 n, i32 team, i32 reverse), f64, f32, bf16, f16) {
    typedef acc<T> A;
    constexpr int E = 4;
    SMEM(A, partial, [32]);
    i64 teams = blockDim.x / team;
    i32 lane = i32(threadIdx.x % team);
#pragma unroll 1
    for (i64 first = blockIdx.x * teams; first < rows; first += gridDim.x * teams) {
        i64 row = first + threadIdx.x / team, length = row < rows ? n : 0;
        const T* from = x + (row < rows ? row : 0) * n;
        T* to = y + (row < rows ? row : 0) * n;
        A carry = A(0);
#pragma unroll 1
        for (i64 tile = 0; tile < n; tile += i64(team) * E) {
            i64 at = tile + i64(lane) * E;
            A v[E];
#pragma unroll
            for (int e = 0; e < E; e++) {
                i64 i = at + e;
                v[e] = i < length ? load(from[reverse ? n - 1 - i : i]) : A(0);
                if (e > 0) v[e] += v[e - 1];
            }
            A all, start = sum_before(v[E - 1], team, partial, all) + carry;
            carry += all;
#pragma unroll
            for (int e = 0; e < E; e++) {
                i64 i = at + e;
                if (i < length) to[reverse ? n - 1 - i : i] = store<T>(start + v[e]);
            }
        }
    }
}
