// The words in which kernels are declared, and the differences of three compilers that they hide.
//
// One text is compiled by nvcc, by NVRTC (which has no headers at all: none is included anywhere) and, for tests without a
// GPU, by a host compiler on top of kernels/emulator/emulator.h, which defines CUEMU. build.rs reads the lines below as
// text, and appends the entry points; see there for their form.
#pragma once

#ifdef CUEMU
#define DEVICE inline
#define ENTRY static
#define EMULATED(kernel) CUEMU_KERNEL(kernel)
#else
#define DEVICE __device__ __forceinline__
#define ENTRY extern "C" __global__
#define EMULATED(kernel)
// Shared memory of a fixed size: SMEM(float, partial, [32]);  and of the size that the launch gives: DYN_SMEM(float, row);
#define SMEM(type, name, extents) __shared__ type name extents
#define DYN_SMEM(type, name)                                            \
    extern __shared__ __align__(1024) unsigned char dynamic_shared[];   \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#endif

#define KERNEL(name, args, ...) template <class T> DEVICE void name args
#define KERNEL2(name, args, ...) template <class T, class U> DEVICE void name args
#define KERNEL0(name, args) DEVICE void name##_body args
#define LAUNCH_BOUNDS(...)
#define UNARY(name, op)
#define BINARY(name, op)

// An argument that may be null: an Option in Rust.
template <class P> using maybe = P;
