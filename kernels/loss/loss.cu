// What the losses share: class targets, and the step from the losses of a batch to the result.
//
// Math: targets become indices (-1: ignored) and are checked; the weight of a mean is the number of counted targets, or the
// sum of their classes' weights; the result is the sum of the losses, perhaps divided by it.
// Mapping: one block for everything, each thread strides over the targets: there is one per row of scores.
// Memory: reads the targets once, writes 8 bytes for each.
// Determinism: sums in double, in an order that the block's size alone decides.
#include "common/reduce.cuh"

struct Earliest {
    template <class A> static DEVICE A start() { return A(0x7fffffffffffffff); }
    template <class A> static DEVICE A join(A a, A b) { return a < b ? a : b; }
};

// of[i] = the class of target i, -1 where it is ignored or out of range; bad = {first position out of range or -1, what
// stands there}; weight = {number of counted targets, number of classes}.
KERNEL(loss_classes, (i64* of, i64* bad, f64* weight, const T* targets, i64 n, i64 classes, i64 ignored, i32 ignores), i64, u32, u8) {
    SMEM(i64, firsts, [32]);
    SMEM(f64, partial, [32]);
    i64 first = Earliest::start<i64>();
    f64 count = 0;
#pragma unroll 1
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) {
        i64 t = i64(targets[i]);
        bool counts = !(ignores && t == ignored), inside = t >= 0 && t < classes;
        if (counts && !inside && i < first) first = i;
        of[i] = counts && inside ? t : -1;
        count += counts ? 1 : 0;
    }
    first = block_reduce<Earliest>(first, firsts);
    count = block_reduce<SumOf>(count, partial);
    if (threadIdx.x == 0) {
        bool fine = first == Earliest::start<i64>();
        bad[0] = fine ? -1 : first;
        bad[1] = fine ? 0 : i64(targets[first]);
        weight[0] = count;
        weight[1] = f64(classes);
    }
}

// weight = {sum of the weights of the targets' classes, sum of all weights}.
KERNEL(loss_weights, (f64* weight, const T* w, const i64* of, i64 n, i64 classes), f64, f32, bf16, f16) {
    SMEM(f64, partial, [32]);
    f64 counted = 0, all = 0;
#pragma unroll 1
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) counted += of[i] < 0 ? 0 : f64(load(w[of[i]]));
#pragma unroll 1
    for (i64 j = threadIdx.x; j < classes; j += blockDim.x) all += f64(load(w[j]));
    counted = block_reduce<SumOf>(counted, partial);
    all = block_reduce<SumOf>(all, partial);
    if (threadIdx.x == 0) {
        weight[0] = counted;
        weight[1] = all;
    }
}

// y = the sum of the losses, divided by weight[0] (their number without it) if `mean`; a mean of nothing is 0.
KERNEL(loss_reduce, (T* y, const acc<T>* losses, maybe<const f64*> weight, i64 n, i32 mean), f64, f32, bf16, f16) {
    SMEM(f64, partial, [32]);
    f64 sum = 0;
#pragma unroll 4
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += f64(losses[i]);
    sum = block_reduce<SumOf>(sum, partial);
    f64 by = weight ? weight[0] : f64(n);
    if (threadIdx.x == 0) y[0] = store<T>(acc<T>(!mean ? sum : by == 0 ? 0 : sum / by));
}
