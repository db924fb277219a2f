// Rows that a team of threads holds in registers between passes: memory is read once.
//
// A team is 1, 2, 4, ... 32 neighbouring lanes, or the whole block. Its thread k holds packs k, k + team, ... of the row, each
// of N elements: N is PACK where all rows are aligned, else 1. Rows that are longer than a team can hold are read again for
// every pass: the second time they come from the cache.
#pragma once
#include "common/pack.cuh"
#include "common/reduce.cuh"

// K packs of N elements of a row, as numbers to compute with.
template <class T, int N, int K> struct Held {
    typedef acc<T> A;
    A v[K * N];

    // Whether the team's pack k exists for any of its threads: what is beyond costs nothing.
    static DEVICE bool any(int k, i32 n, i32 team) { return k * team * N < n; }
    static DEVICE i32 place(int k, i32 lane, i32 team) { return (k * team + lane) * N; }

    // `rest` is the value of elements beyond the end.
    DEVICE void fetch(const T* row, i32 n, i32 lane, i32 team, A rest) {
#pragma unroll
        for (int k = 0; k < K; k++) {
            i32 at = place(k, lane, team);
            if (at < n) {
                Pack<T, N> p;
                p.load(row + at);
#pragma unroll
                for (int j = 0; j < N; j++) v[k * N + j] = load(p.v[j]);
            } else {
#pragma unroll
                for (int j = 0; j < N; j++) v[k * N + j] = rest;
            }
        }
    }

    // Adds the elements of another row; padding beyond the end stays. With `sum`, every element is rounded and written there.
    template <bool TO = false> DEVICE void add(const T* row, i32 n, i32 lane, i32 team, T* sum = nullptr) {
#pragma unroll
        for (int k = 0; k < K; k++) {
            i32 at = place(k, lane, team);
            // One pack in flight: all of them beside the row that is held are more than there are registers.
            asm volatile("" ::: "memory");
            if (at < n) {
                Pack<T, N> p;
                p.load(row + at);
#pragma unroll
                for (int j = 0; j < N; j++) {
                    v[k * N + j] += load(p.v[j]);
                    if (TO) v[k * N + j] = load(p.v[j] = store<T>(v[k * N + j]));
                }
                if (TO && sum) p.store(sum + at);
            }
        }
    }

    // f(v) for every element, and for padding beyond the end, so that every thread of the team takes part.
    template <class F> DEVICE void each(i32 n, i32 team, F f) {
#pragma unroll
        for (int k = 0; k < K; k++)
            if (any(k, n, team))
#pragma unroll
                for (int j = 0; j < N; j++) f(v[k * N + j]);
    }

    // f(v) for every element of the row.
    template <class F> DEVICE void each_real(i32 n, i32 lane, i32 team, F f) {
#pragma unroll
        for (int k = 0; k < K; k++)
            if (place(k, lane, team) < n)
#pragma unroll
                for (int j = 0; j < N; j++) f(v[k * N + j]);
    }

    // y = f(v, place in the row) for every element of the row.
    template <class F> DEVICE void put(T* row, i32 n, i32 lane, i32 team, F f) const {
#pragma unroll
        for (int k = 0; k < K; k++) {
            i32 at = place(k, lane, team);
            if (at < n) {
                Pack<T, N> p;
#pragma unroll
                for (int j = 0; j < N; j++) p.v[j] = store<T>(f(v[k * N + j], at + j));
                p.store(row + at);
            }
        }
    }
};

// f(a, b) for the elements of two rows of any length that belong to a thread, in packs where both are aligned.
template <class T, class F> DEVICE void read_rows(const T* a, const T* b, i64 n, i32 lane, i32 team, F f) {
    constexpr int N = PACK<T>;
    i64 whole = aligned<T, N>(a) && aligned<T, N>(b) ? n / N * N : 0;
#pragma unroll 1
    for (i64 i = i64(lane) * N; i < whole; i += i64(team) * N) {
        Pack<T, N> p, q;
        p.load(a + i);
        q.load(b + i);
#pragma unroll
        for (int j = 0; j < N; j++) f(load(p.v[j]), load(q.v[j]));
    }
#pragma unroll 1
    for (i64 i = whole + lane; i < n; i += team) f(load(a[i]), load(b[i]));
}

// y = f(a, b, place) for those elements. One row may be given twice.
template <class T, class F> DEVICE void write_row(T* y, const T* a, const T* b, i64 n, i32 lane, i32 team, F f) {
    constexpr int N = PACK<T>;
    i64 whole = aligned<T, N>(y) && aligned<T, N>(a) && aligned<T, N>(b) ? n / N * N : 0;
#pragma unroll 1
    for (i64 i = i64(lane) * N; i < whole; i += i64(team) * N) {
        Pack<T, N> p, q;
        p.load(a + i);
        q.load(b + i);
#pragma unroll
        for (int j = 0; j < N; j++) p.v[j] = store<T>(f(load(p.v[j]), load(q.v[j]), i + j));
        p.store(y + i);
    }
#pragma unroll 1
    for (i64 i = whole + lane; i < n; i += team) y[i] = store<T>(f(load(a[i]), load(b[i]), i));
}

// body(row, whether it exists, thread of the team) for every row, in turns that all teams of a block make together.
template <class F> DEVICE void for_rows(i64 rows, i32 team, F body) {
    i64 teams = blockDim.x / team;
    i32 lane = i32(threadIdx.x % team);
#pragma unroll 1
    for (i64 first = blockIdx.x * teams; first < rows; first += gridDim.x * teams) {
        i64 row = first + threadIdx.x / team;
        body(row < rows ? row : rows - 1, row < rows, lane);
    }
}

// How many elements a thread holds: of one row, or of several together.
template <class T> constexpr int HELD = sizeof(T) == 8 ? 8 : 16;

// Whether rows can be read in packs.
template <class T> DEVICE bool rows_aligned(const T* x, i64 n) { return n % PACK<T> == 0 && aligned<T, PACK<T>>(x); }
