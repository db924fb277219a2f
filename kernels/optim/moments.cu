// Statistics over all elements of some tensors: the norm of gradients, and what a health report shows.
//
// Math: sums of squares in double, where those of float types neither overflow nor underflow; doubles are sorted into small,
// ordinary and big ones, which are scaled by powers of two before they are squared (Blue 1978).
// Mapping: norms take many tensors in a launch, 8192 elements of one for each block (common/tensors.cuh); a survey's grid strides over one
// tensor. Each block writes one partial result; one block adds all of them.
// Memory: reads the elements once; the deviations take a second pass.
// Aliasing: results are fresh memory.
// Determinism: partial results follow from the number of blocks, which the tensors' sizes decide; they are added in order.
// Tried: a launch per tensor, which this replaces; neither was timed on a GPU yet.
#include "common/math.cuh"
#include "common/reduce.cuh"
#include "common/tensors.cuh"

// Scales of small and big doubles.
constexpr f64 SMALL = 0x1p-500, BIG = 0x1p480, UP = 0x1p600, DOWN = 0x1p-600;

struct Squares {
    f64 small = 0, middle = 0, big = 0;
    DEVICE void add(f32 x) { middle += f64(x) * f64(x); }
    DEVICE void add(f64 x) {
        f64 a = fabs(x);
        if (a > BIG) big += (x * DOWN) * (x * DOWN);
        else if (a < SMALL) small += (x * UP) * (x * UP);
        else middle += x * x;
    }
};

template <class T, class F> DEVICE void for_all(const T* x, i64 n, F f) {
    constexpr int N = PACK<T>;
    i64 packs = aligned<T, N>(x) ? n / N : 0;
#pragma unroll 2
    for (i64 k = thread_index(); k < packs; k += thread_count()) {
        Pack<T, N> p;
        p.load(x + k * N);
#pragma unroll
        for (int j = 0; j < N; j++) f(load(p.v[j]));
    }
    for (i64 i = packs * N + thread_index(); i < n; i += thread_count()) f(load(x[i]));
}

// Three sums of squares per block, from partial result `first` on, over many tensors. Array: x. `any` is one of them.
KERNEL(moments_squares, (f64* partial, const T* any, const Tensors& all, i64 first), f64, f32, bf16, f16) {
    (void)any;
    SMEM(f64, scratch, [32]);
    Squares s;
    for_tensor_piece(all, [&](i32 k, i64 begin, i64 end) {
        constexpr int N = PACK<T>;
        const T* x = array_of<T>(all, 0, k);
        i64 whole = aligned<T, N>(x) ? begin + (end - begin) / N * N : begin;
        for (i64 i = begin + i64(threadIdx.x) * N; i < whole; i += i64(blockDim.x) * N) {
            Pack<T, N> p;
            p.load(x + i);
#pragma unroll
            for (int j = 0; j < N; j++) s.add(load(p.v[j]));
        }
        for (i64 i = whole + threadIdx.x; i < end; i += blockDim.x) s.add(load(x[i]));
    });
    f64 small = block_reduce<SumOf>(s.small, scratch), middle = block_reduce<SumOf>(s.middle, scratch), big = block_reduce<SumOf>(s.big, scratch);
    if (threadIdx.x == 0) {
        f64* to = partial + 3 * (first + blockIdx.x);
        to[0] = small;
        to[1] = middle;
        to[2] = big;
    }
}

// Per block: sum, largest magnitude, number of zeros, of elements that are not finite.
KERNEL(moments_survey, (f64* partial, const T* x, i64 n, i64 first), f64, f32, bf16, f16) {
    SMEM(f64, scratch, [32]);
    f64 sum = 0, top = 0, zeros = 0, odd = 0;
    for_all(x, n, [&](auto v) {
        f64 d = f64(v), a = fabs(d);
        sum += d;
        top = max_nan(top, a);
        zeros += d == 0 ? 1 : 0;
        odd += a < Limits<f64>::infinity() ? 0 : 1;
    });
    sum = block_reduce<SumOf>(sum, scratch);
    top = block_reduce<MaxOf>(top, scratch);
    zeros = block_reduce<SumOf>(zeros, scratch);
    odd = block_reduce<SumOf>(odd, scratch);
    if (threadIdx.x == 0) {
        f64* to = partial + 4 * (first + blockIdx.x);
        to[0] = sum;
        to[1] = top;
        to[2] = zeros;
        to[3] = odd;
    }
}

// Per block: sum of the squared deviations from total[0] / n.
KERNEL(moments_spread, (f64* partial, const T* x, const f64* total, i64 n), f64, f32, bf16, f16) {
    SMEM(f64, scratch, [32]);
    f64 mean = total[0] / f64(n), sum = 0;
    for_all(x, n, [&](auto v) { sum += (f64(v) - mean) * (f64(v) - mean); });
    sum = block_reduce<SumOf>(sum, scratch);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// Adds `count` partial results of `width` numbers each; number `maximum` is the largest instead.
KERNEL0(moments_total, (f64* total, const f64* partial, i64 count, i32 width, i32 maximum)) {
    SMEM(f64, scratch, [32]);
#pragma unroll 1
    for (i32 w = 0; w < width; w++) {
        f64 v = w == maximum ? MaxOf::start<f64>() : 0;
        for (i64 i = threadIdx.x; i < count; i += blockDim.x) v = w == maximum ? max_nan(v, partial[i * width + w]) : v + partial[i * width + w];
        v = w == maximum ? block_reduce<MaxOf>(v, scratch) : block_reduce<SumOf>(v, scratch);
        if (threadIdx.x == 0) total[w] = v;
    }
}

// norm[0] = the root of the three sums of squares; norm[1] = the factor that brings it down to `most`: 1 where it is smaller or
// not finite. (PyTorch's formula, its 1e-6 included.)
KERNEL0(moments_norm, (f64* norm, const f64* total, f64 most)) {
    if (thread_index() != 0) return;
    f64 small = m_sqrt(total[0]) * DOWN, middle = m_sqrt(total[1]), big = m_sqrt(total[2]) * UP;
    f64 all = total[1];
    // Ordinary elements cannot overflow: NaN is found among them, and the infinity of types that are not sorted.
    if (all - all == 0) all = m_hypot(m_hypot(small, middle), big);
    f64 factor = most / (all + 1e-6);
    norm[0] = all;
    norm[1] = all - all == 0 && factor < 1 ? factor : 1.0;
}

// y = x times the number at `by`, for many tensors. Arrays: y, x. `any` is one of the results.
KERNEL(moments_scale, (T* any, const Tensors& all, const f64* by), f64, f32, bf16, f16) {
    (void)any;
    const acc<T> factor = acc<T>(*by);
    for_tensor_piece(all, [&](i32 k, i64 begin, i64 end) {
        constexpr int N = PACK<T>;
        T* y = array_of<T>(all, 0, k);
        const T* x = array_of<T>(all, 1, k);
        i64 whole = aligned<T, N>(x) && aligned<T, N>(y) ? begin + (end - begin) / N * N : begin;
        for (i64 i = begin + i64(threadIdx.x) * N; i < whole; i += i64(blockDim.x) * N) {
            Pack<T, N> p;
            p.load(x + i);
#pragma unroll
            for (int j = 0; j < N; j++) p.v[j] = store<T>(load(p.v[j]) * factor);
            p.store(y + i);
        }
        for (i64 i = whole + threadIdx.x; i < end; i += blockDim.x) y[i] = store<T>(load(x[i]) * factor);
    });
}
