// Copies from global to shared memory that run beside the computation (sm_80), in groups that are waited for in order.
#pragma once
#include "common/types.cuh"
#ifndef CUEMU

// 16 bytes, both ends aligned to 16; zeros where `there` is false (the source is then not read, but must be an address).
DEVICE void copy_async(void* to_shared, const void* from, bool there = true) {
    u32 to = static_cast<u32>(__cvta_generic_to_shared(to_shared));
    i32 bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// Closes the group of all copies that this thread has started since the last.
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most PENDING of this thread's groups are under way. Other threads' copies need a barrier after it.
template <int PENDING> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory"); }

#endif
