// One block of a kernel on one thread of the host: its CUDA threads are fibers, switched where they wait for each other.
//
// A fiber runs until it reaches a barrier or a warp operation that others have not reached yet. A warp operation is carried
// out once, by the last lane to arrive, over the argument records that every lane left on its own stack: no lane needs a
// second rendezvous, and any mask works. Threads that never wait never switch: a finished thread's stack goes on with the
// next one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#if !(defined(__x86_64__) && defined(__linux__))
#include <ucontext.h>
#endif

namespace cuemu {

struct Extent3 {
    unsigned x, y, z;
};

// Where a fiber is to go on.
struct Context {
#if defined(__x86_64__) && defined(__linux__)
    void* stack_pointer = nullptr;
#else
    ucontext_t state; // ten times slower: every switch makes a system call
#endif
};

enum class State : uint8_t { Running, InWarpOp, AtBarrier, Exited };

// A copy that the kernel started and the hardware would carry out at any time until it is waited for.
struct AsyncCopy {
    void* to;
    const void* from;
    unsigned bytes, zeros; // zeros follow the bytes
    unsigned group;
    void run() const;
};

struct Thread {
    Extent3 index;
    unsigned lane, warp;
    State state;
    // The warp operation it waits in: which one, with which lanes, and its arguments; or the barrier's place in the source.
    const void* op;
    unsigned mask;
    void* argument;
    const void* site;
    Context* context;
    unsigned group, groups_done;
    std::vector<AsyncCopy> copies;
};

struct Launch {
    const char* name;
    Extent3 grid, block;
    size_t shared;
    // Order in which threads and blocks start, and fate of asynchronous copies: 0 forward, copies as late as allowed;
    // 1 backward, copies at once; above, random with this seed.
    unsigned order;
    void (*kernel)(void*);
    void* arguments;
};

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t STACK = 64 << 10;
constexpr size_t STATIC_SHARED = 48 << 10, DYNAMIC_SHARED = 227 << 10;

// What one host thread needs to run a block; large, so blocks are kept and lent out again.
struct Block {
    Thread threads[MAX_THREADS];
    Context contexts[MAX_THREADS], host;
    char* stacks;
    char *dynamic_memory, *static_memory;

    const Launch* launch;
    Extent3 index;
    unsigned count, warps;
    unsigned started, stacks_used, at_barrier, exited;
    uint32_t ready[32], arrived[32]; // lanes of each warp that can go on; that wait in a warp operation
    unsigned order[MAX_THREADS];
    uint64_t random;
    // Static shared arrays are laid out when they are first reached, with a strip of canaries after each.
    uint64_t epoch;
    size_t static_used;
    struct Array {
        const char* name;
        char* end;
    };
    std::vector<Array> arrays;
    std::string error;

    Block();
    // Runs one block; false when the kernel broke a rule, which `error` then tells.
    bool run(const Launch& launch, uint64_t block);
    bool coin();
};

// The block and thread that this host thread runs now. Fibers never move to another host thread.
extern thread_local Block* block;
extern thread_local Thread* thread;

// Abandons the block: records the message with the place, and returns to the launcher.
[[noreturn]] void fail(const char* what);

void switch_away();
void barrier(const void* site);

// A static shared array: fresh and poisoned for every block.
struct SharedArray {
    uint64_t epoch = 0;
    void* memory = nullptr;
    void* get(const char* name, size_t bytes);
};
void* dynamic_shared();

// Copies that run beside the kernel: `bytes` and then zeros up to `size`, complete when the thread has waited for its group.
void start_copy(void* to, const void* from, unsigned bytes, unsigned size);
void finish_copies(unsigned pending);

// Runs `carry_out(arguments, mask)` once for the lanes of the mask, when the last of them arrives; `op` says which operation it
// is, for all lanes must be in the same one.
void rendezvous(unsigned mask, void* argument, const void* op, void (*carry_out)(void** arguments, unsigned mask));

} // namespace cuemu
