// The keys that each query of packed sequences sees.
//
// Math         query i of sequence s, at place i - of_q[s] of tq, sees the keys of its sequence from place + tk - tq - left to
//              place + tk - tq + right
// Mapping      one thread per query, which searches its sequence; grid-stride
// Memory       log2(n) offsets a query, two numbers written
// Aliasing     none
// Determinism  every element has one writer
// Tried        searching in the attention kernels themselves: a dependent chain of loads for every row of every tile
#include "common/attention.cuh"

// `found` gets a copy of both lists of n + 1 offsets, to be judged on the host. Offsets that are wrong give wrong spans, but none
// outside of the keys: a captured step goes on with them.
KERNEL0(sdpa_packed_spans, (i64* spans, i64* found, const i64* of_q, const i64* of_k, i64 n, i64 tq, i64 tk, i64 left, i64 right)) {
#pragma unroll 1
    for (i64 i = thread_index(); i <= n; i += thread_count()) {
        found[i] = of_q[i];
        found[n + 1 + i] = of_k[i];
    }
#pragma unroll 1
    for (i64 i = thread_index(); i < tq; i += thread_count()) {
        // The first sequence that ends after i.
        i64 low = 0, high = n;
#pragma unroll 1
        while (low < high) {
            i64 s = (low + high) / 2;
            if (of_q[s + 1] > i) high = s;
            else low = s + 1;
        }
        if (low == n) {
            spans[2 * i] = spans[2 * i + 1] = 0;
            continue;
        }
        i64 first = between(of_k[low], 0, tk), end = between(of_k[low + 1], first, tk);
        i64 own = i - of_q[low + 1] + end;
        spans[2 * i] = between(own - left, first, end);
        spans[2 * i + 1] = between(own + right + 1, first, end);
    }
}
