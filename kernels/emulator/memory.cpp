#include "memory.h"
#include "scheduler.h"
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

namespace cuemu {

static struct sigaction previous[2]; // of SIGSEGV, of SIGBUS

static void on_fault(int signal, siginfo_t* info, void* context) {
    if (block) {
        char text[96];
        snprintf(text, sizeof text, "invalid memory access at %p", info->si_addr);
        // Leaves the handler for good. That is allowed: it runs without blocked signals (SA_NODEFER) on a stack of its own,
        // which counts as free again as soon as the stack pointer has left it.
        fail(text);
    }
    const struct sigaction& before = previous[signal == SIGBUS];
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(signal, info, context);
    } else if (before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) {
        // Returning repeats the access, and the default action ends the process as if we had never been here.
        sigaction(signal, &before, nullptr);
    } else {
        before.sa_handler(signal);
    }
}

namespace {

// A stack for the handler, for threads that have none (Rust's have): a kernel that overflows its fiber's stack leaves no room
// to handle that.
struct HandlerStack {
    stack_t own;
    HandlerStack() {
        memset(&own, 0, sizeof own);
        stack_t present;
        if (sigaltstack(nullptr, &present) || !(present.ss_flags & SS_DISABLE)) return;
        own.ss_size = 64 << 10;
        own.ss_sp = mmap(nullptr, own.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (own.ss_sp == MAP_FAILED || sigaltstack(&own, nullptr)) own.ss_sp = nullptr;
    }
    ~HandlerStack() {
        if (!own.ss_sp) return;
        stack_t none;
        memset(&none, 0, sizeof none);
        none.ss_flags = SS_DISABLE;
        sigaltstack(&none, nullptr);
        munmap(own.ss_sp, own.ss_size);
    }
};

} // namespace

void catch_faults() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction a;
        memset(&a, 0, sizeof a);
        a.sa_sigaction = on_fault;
        a.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
        sigaction(SIGSEGV, &a, &previous[0]);
        sigaction(SIGBUS, &a, &previous[1]);
    });
    static thread_local HandlerStack stack;
    (void)stack;
}

// How many pages further on a block begins than it would: 0 most of the time, so that neighbours can be one mapping of the system's.
// Differs from block to block and from run to run.
static size_t pages_to_skip() {
    static std::atomic<uint64_t> state{static_cast<uint64_t>(getpid()) << 32 ^ static_cast<uint64_t>(time(nullptr))};
    // Steps of a Weyl sequence, mixed.
    uint64_t x = state.fetch_add(0x9e3779b97f4a7c15u);
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    x ^= x >> 31;
    return x % 4 ? 0 : x / 4 % 8;
}

static size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
static size_t pages(size_t bytes) { return (bytes + page_size() - 1) / page_size() * page_size(); }

} // namespace cuemu

// `bytes` of device memory, aligned to 16, filled with NaN, that end where an inaccessible page begins (up to 15 bytes of
// alignment lie between) and begin behind another. Its address differs from run to run. Null when there is none.
extern "C" void* cuemu_alloc(size_t bytes) {
    using namespace cuemu;
    // An address of its own even for nothing: cuemu_free finds the pages from it.
    bytes = bytes ? bytes : 1;
    size_t page = page_size(), body = pages(bytes);
    size_t skipped = pages_to_skip() * page;
    char* all = static_cast<char*>(mmap(nullptr, body + 2 * page + skipped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (all == MAP_FAILED) return nullptr;
    if (skipped) munmap(all + body + 2 * page, skipped);
    if (mprotect(all + page, body, PROT_READ | PROT_WRITE)) {
        munmap(all, body + 2 * page);
        return nullptr;
    }
    char* p = all + page + ((body - bytes) & ~size_t(15));
    memset(p, 0xff, bytes);
    return p;
}

// Gives back what cuemu_alloc gave; `bytes` as then.
extern "C" void cuemu_free(void* p, size_t bytes) {
    using namespace cuemu;
    if (!p) return;
    size_t page = page_size(), body = pages(bytes ? bytes : 1);
    char* first = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(p) / page * page);
    munmap(first - page, body + 2 * page);
}
