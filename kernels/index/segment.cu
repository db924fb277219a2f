// Sums of elements or rows into places named by index, without atomics on floats.
//
// Math         y[place(k), :] += sum over the k that name the place, in the order of k
// Mapping      1. a stable radix sort (8 bits a pass: count, scan, place) of (key, k) brings equal keys together;
//              2. runs longer than 64 are cut into groups of 64, each summed by threads of its own (partial);
//              3. the first position of every run adds its group and the partial sums to y (sum).
//              In 2 and 3 a thread owns one column, or 16 bytes of columns; the work is split by position, not by place,
//              so that a place named by everybody costs no more than many places.
// Memory       sort: 32 bytes per key and pass; sums: every term once, y once where something is added, 1/64 of the terms
//              again as partial sums
// Determinism  the sort is stable and the groups depend on the keys alone: the same bits for every grid. Error of a sum of
//              m terms: about 4 + 16 + 16 + m / 1024 roundings
#include "common/reduce.cuh"
#include "common/view.cuh"

constexpr i32 TILE = 2048;
constexpr i32 DIGITS = 256;
constexpr i32 WARPS = 8;
constexpr i32 GROUP = 64;

// Lanes whose digit, of `width` bits, is the same; only for lanes that have one.
DEVICE u32 same_digit(u32 digit, i32 width, bool there) {
    u32 same = __ballot_sync(0xffffffffu, there);
#pragma unroll 1
    for (i32 bit = 0; bit < width; bit++) {
        u32 set = __ballot_sync(0xffffffffu, digit >> bit & 1u);
        same &= digit >> bit & 1u ? set : ~set;
    }
    return same;
}

DEVICE u32 digit_of(i64 key, i32 shift) { return u32(key >> shift) & (DIGITS - 1); }

// How often each warp of the block meets each digit in its eighth of the tile. Integers may be added in any order.
DEVICE void count_digits(u32 (&seen)[WARPS][DIGITS], const i64* keys, i64 n, i32 shift) {
    for (i32 i = i32(threadIdx.x); i < WARPS * DIGITS; i += 256) seen[i / DIGITS][i % DIGITS] = 0;
    __syncthreads();
    i64 first = i64(blockIdx.x) * TILE + warp_index() * (TILE / WARPS);
#pragma unroll 1
    for (i32 k = lane_index(); k < TILE / WARPS && first + k < n; k += 32) atomicAdd(&seen[warp_index()][digit_of(keys[first + k], shift)], 1u);
    __syncthreads();
}

// count[digit * blocks + b] = how often tile b holds the digit. 256 threads, one block per tile.
LAUNCH_BOUNDS(256)
KERNEL0(segment_count, (i64* count, const i64* keys, i64 n, i32 shift)) {
    SMEM(u32, seen, [WARPS][DIGITS]);
    count_digits(seen, keys, n, shift);
    u32 total = 0;
    for (i32 w = 0; w < WARPS; w++) total += seen[w][threadIdx.x];
    count[i64(threadIdx.x) * gridDim.x + blockIdx.x] = total;
}

// Replaces n counts by the sums of those before each. One block, which steps through them in strips of one per thread.
LAUNCH_BOUNDS(1024)
KERNEL0(segment_scan, (i64* count, i64 n)) {
    SMEM(i64, totals, [32]);
    i64 before = 0;
#pragma unroll 1
    for (i64 strip = 0; strip < n; strip += blockDim.x) {
        i64 i = strip + threadIdx.x, own = i < n ? count[i] : 0, sum = own;
#pragma unroll
        for (i32 step = 1; step < 32; step *= 2) {
            i64 left = __shfl_up_sync(0xffffffffu, sum, u32(step));
            if (lane_index() >= step) sum += left;
        }
        if (lane_index() == 31) totals[warp_index()] = sum;
        __syncthreads();
        i64 lower = 0, all = 0;
        for (i32 w = 0; w < warp_count(); w++) {
            lower += w < warp_index() ? totals[w] : 0;
            all += totals[w];
        }
        if (i < n) count[i] = before + lower + sum - own;
        before += all;
        __syncthreads();
    }
}

// Moves keys, and the positions they came from, to where `start` (the scanned counts) says. Without `order` the positions
// are the keys' own. Digits have `width` bits. 256 threads, one block per tile.
LAUNCH_BOUNDS(256)
KERNEL0(segment_place, (i64* to_keys, i64* to_order, const i64* keys, maybe<const i64*> order, const i64* start, i64 n, i32 shift, i32 width)) {
    SMEM(u32, seen, [WARPS][DIGITS]);
    SMEM(i64, base, [DIGITS]);
    count_digits(seen, keys, n, shift);
    // The index of each warp's first key with a digit among the block's.
    u32 before = 0;
    for (i32 w = 0; w < WARPS; w++) {
        u32 own = seen[w][threadIdx.x];
        seen[w][threadIdx.x] = before;
        before += own;
    }
    base[threadIdx.x] = start[i64(threadIdx.x) * gridDim.x + blockIdx.x];
    __syncthreads();
    i64 first = i64(blockIdx.x) * TILE + warp_index() * (TILE / WARPS);
#pragma unroll 1
    for (i32 k = lane_index(); k < TILE / WARPS; k += 32) {
        i64 from = first + k;
        bool there = from < n;
        i64 key = there ? keys[from] : 0;
        u32 digit = digit_of(key, shift), same = same_digit(digit, width, there), rank = 0;
        if (there) rank = seen[warp_index()][digit] + u32(__popc(same & ((1u << lane_index()) - 1u)));
        __syncwarp();
        if (there) {
            if (__ffs(i32(same)) - 1 == lane_index()) seen[warp_index()][digit] += u32(__popc(same));
            i64 to = base[digit] + rank;
            to_keys[to] = key;
            to_order[to] = order ? order[from] : from;
        }
        __syncwarp();
    }
}

// ---- sums over runs of equal keys

// First position in lo..hi, where all before have keys below `key`.
DEVICE i64 lower_bound(const i64* keys, i64 lo, i64 hi, i64 key) {
    while (lo < hi) {
        i64 mid = lo + (hi - lo) / 2;
        if (keys[mid] < key) lo = mid + 1;
        else hi = mid;
    }
    return lo;
}

// sum += the rows of g at order[j..] while the key stays, at most GROUP of them: four loads under way, and their sum apart.
template <int M, class T> DEVICE void add_group(acc<T> (&sum)[M], const T* g, const i64* keys, const i64* order, i64 j, i64 n, i64 pitch) {
    i64 end = j + GROUP < n ? j + GROUP : n;
    if (keys[end - 1] != keys[j]) end = lower_bound(keys, j, end, keys[j] + 1);
#pragma unroll 1
    for (; j < end; j += 4) {
        Pack<T, M> p[4];
#pragma unroll
        for (int t = 0; t < 4; t++)
            if (j + t < end) p[t].load(g + order[j + t] * pitch);
        acc<T> few[M] = {};
#pragma unroll
        for (int t = 0; t < 4; t++)
#pragma unroll
            for (int i = 0; i < M; i++)
                if (j + t < end) few[i] += load(p[t].v[i]);
#pragma unroll
        for (int i = 0; i < M; i++) sum[i] += few[i];
    }
}

// Window w of 64 positions holds the start of at most one group that is not the first of its run: the run must have begun
// 64 positions before. `items` is outer * windows * packs of a row.
template <int M, class T>
DEVICE void partial_sums(acc<T>* partial, const T* g, const i64* keys, const i64* order, i64 n, i64 packs, i64 items) {
    i64 windows = (n + GROUP - 1) / GROUP;
#pragma unroll 1
    for (i64 item = thread_index(); item < items; item += thread_count()) {
        u64 column, window, row = divided(u64(item), u64(packs), column), o = divided(row, u64(windows), window);
        i64 c = i64(column) * M, at = i64(window) * GROUP, head = lower_bound(keys, 0, at, keys[at]);
        // The run's groups begin at its head, then every 64; this one is the first of them inside the window.
        i64 j = at + (GROUP - 1 - (at - head + GROUP - 1) % GROUP);
        if (head == at || j >= n || keys[j] != keys[at]) continue;
        acc<T> sum[M] = {};
        add_group<M>(sum, g + i64(o) * n * packs * M + c, keys, order, j, n, packs * M);
#pragma unroll
        for (int i = 0; i < M; i++) partial[i64(row) * packs * M + c + i] = sum[i];
    }
}

// y is [outer, extent, inner], g is [outer, n, inner]; partial is [outer, windows, inner].
KERNEL(segment_partial, (acc<T>* partial, const T* g, const i64* keys, const i64* order, i64 outer, i64 n, i64 inner), f64, f32, bf16, f16) {
    constexpr int N = PACK<T>;
    i64 windows = (n + GROUP - 1) / GROUP;
    if (inner % N == 0 && aligned<T, N>(g)) partial_sums<N>(partial, g, keys, order, n, inner / N, outer * windows * (inner / N));
    else partial_sums<1>(partial, g, keys, order, n, inner, outer * windows * inner);
}

template <int M, class T>
DEVICE void full_sums(T* y, const T* g, const acc<T>* partial, const i64* keys, const i64* order, i64 n, i64 extent, i64 packs, i64 skip, i64 items) {
    i64 windows = (n + GROUP - 1) / GROUP;
#pragma unroll 1
    for (i64 item = thread_index(); item < items; item += thread_count()) {
        u64 column, position, outer = divided(divided(u64(item), u64(packs), column), u64(n), position);
        i64 c = i64(column) * M, o = i64(outer), j = i64(position), key = keys[j];
        if (key == skip || (j > 0 && keys[j - 1] == key)) continue;
        acc<T> sum[M] = {};
        add_group<M>(sum, g + o * n * packs * M + c, keys, order, j, n, packs * M);
        // The groups that partial_sums added up, sixteen at a time.
        for (j += GROUP; j < n && keys[j] == key;) {
            acc<T> few[M] = {};
            for (int t = 0; t < 16 && j < n && keys[j] == key; t++, j += GROUP) {
                const acc<T>* p = partial + (o * windows + j / GROUP) * packs * M + c;
#pragma unroll
                for (int i = 0; i < M; i++) few[i] += p[i];
            }
#pragma unroll
            for (int i = 0; i < M; i++) sum[i] += few[i];
        }
        Pack<T, M> out;
        T* to = y + (o * extent + key) * packs * M + c;
        out.load(to);
#pragma unroll
        for (int i = 0; i < M; i++) out.v[i] = store<T>(load(out.v[i]) + sum[i]);
        out.store(to);
    }
}

// y += sums. `partial` is null when no run can be longer than a group; the key `skip` adds nothing.
KERNEL(segment_sum,
       (T* y, const T* g, maybe<const acc<T>*> partial, const i64* keys, const i64* order, i64 outer, i64 n, i64 extent, i64 inner, i64 skip),
       f64, f32, bf16, f16) {
    constexpr int N = PACK<T>;
    if (inner % N == 0 && aligned<T, N>(g) && aligned<T, N>(y))
        full_sums<N>(y, g, partial, keys, order, n, extent, inner / N, skip, outer * n * (inner / N));
    else full_sums<1>(y, g, partial, keys, order, n, extent, inner, skip, outer * n * inner);
}

// ---- other reductions over runs

struct ProductOf {
    template <class A> static DEVICE A start() { return A(1); }
    template <class A> static DEVICE A join(A a, A b) { return a * b; }
};

// A warp looks at 32 positions. A short run belongs to the lane at its head, which goes through it in order; through a long one the
// whole warp steps, and lanes are joined in a fixed order.
template <class R, class T> DEVICE void fold_runs(T* y, const T* g, const i64* keys, const i64* order, i64 n) {
    typedef acc<T> A;
    i64 windows = (n + 31) / 32;
#pragma unroll 1
    for (i64 w = thread_index() / 32; w < windows; w += thread_count() / 32) {
        i64 j = w * 32 + lane_index(), end = j;
        bool head = j < n && (j == 0 || keys[j - 1] != keys[j]);
        if (head)
            while (end < n && end - j <= 32 && keys[end] == keys[j]) end++;
        bool brief = head && end - j <= 32;
        if (brief) {
            A v = load(y[keys[j]]);
#pragma unroll 1
            for (i64 k = j; k < end; k++) v = R::join(v, load(g[order[k]]));
            y[keys[j]] = store<T>(v);
        }
        u32 rest = __ballot_sync(0xffffffffu, head && !brief);
        while (rest) {
            i64 from = w * 32 + (__ffs(i32(rest)) - 1), key = keys[from], to = lower_bound(keys, from, n, key + 1);
            rest &= rest - 1;
            A v = R::template start<A>();
#pragma unroll 1
            for (i64 k = from + lane_index(); k < to; k += 32) v = R::join(v, load(g[order[k]]));
            v = warp_reduce<R>(v);
            if (lane_index() == 0) y[key] = store<T>(R::join(load(y[key]), v));
        }
    }
}

// y at every key joined with the g at order[j] of all j with that key: multiplied, or their maximum (`how` 1) or minimum (2).
KERNEL(segment_fold, (T* y, const T* g, const i64* keys, const i64* order, i64 n, i32 how), f64, f32, bf16, f16) {
    if (how == 1) fold_runs<MaxOf>(y, g, keys, order, n);
    else if (how == 2) fold_runs<MinOf>(y, g, keys, order, n);
    else fold_runs<ProductOf>(y, g, keys, order, n);
}
