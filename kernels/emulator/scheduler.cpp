#include "scheduler.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace cuemu {

thread_local Block* block = nullptr;
thread_local Thread* thread = nullptr;

// ---- context switch

#if defined(__x86_64__) && defined(__linux__)

// Saves the registers that a call must preserve on the old stack and takes them from the new one.
extern "C" void cuemu_switch(void** save, void* to);
asm(R"(
.text
.globl cuemu_switch
.type cuemu_switch,@function
cuemu_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    pop %rcx
    jmp *%rcx
.size cuemu_switch, .-cuemu_switch
)");

static void prepare(Context& c, char* stack, size_t size, void (*entry)()) {
    void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t(15));
    *--top = nullptr; // the entry's return address: it never returns
    *--top = reinterpret_cast<void*>(entry);
    c.stack_pointer = top - 6; // six registers of any content
}

static void swap(Context& from, Context& to) { cuemu_switch(&from.stack_pointer, to.stack_pointer); }

#else

static void prepare(Context& c, char* stack, size_t size, void (*entry)()) {
    getcontext(&c.state);
    c.state.uc_stack.ss_sp = stack;
    c.state.uc_stack.ss_size = size;
    c.state.uc_link = nullptr;
    makecontext(&c.state, entry, 0);
}

static void swap(Context& from, Context& to) { swapcontext(&from.state, &to.state); }

#endif

// ---- errors

void fail(const char* what) {
    Block& b = *block;
    unsigned in_warp_op = 0, at_barrier = 0;
    for (unsigned i = 0; i < b.started; i++) {
        State s = b.threads[b.order[i]].state;
        in_warp_op += s == State::InWarpOp;
        at_barrier += s == State::AtBarrier;
    }
    char text[512];
    snprintf(text, sizeof text, "%s: %s at block (%u,%u,%u) thread (%u,%u,%u) [%u in a warp operation, %u at a barrier, %u exited, of %u]", b.launch->name,
             what, b.index.x, b.index.y, b.index.z, thread->index.x, thread->index.y, thread->index.z, in_warp_op, at_barrier, b.exited, b.count);
    b.error = text;
    swap(*thread->context, b.host);
    abort(); // nobody resumes a fiber of an abandoned block
}

// ---- scheduling

static void thread_main();

static void make_ready(Thread& t) {
    t.state = State::Running;
    block->ready[t.warp] |= 1u << t.lane;
}

static Thread* take_ready(unsigned warp) {
    Block& b = *block;
    if (!b.ready[warp]) return nullptr;
    unsigned lane = __builtin_ctz(b.ready[warp]);
    b.ready[warp] &= ~(1u << lane);
    return &b.threads[warp * 32 + lane];
}

static Thread* start_next(Context* on) {
    Block& b = *block;
    Thread* t = &b.threads[b.order[b.started++]];
    if (!on) {
        // Tops are staggered: stacks a power of two apart would all use the same lines of the cache.
        unsigned k = b.stacks_used++;
        on = &b.contexts[k];
        prepare(*on, b.stacks + k * STACK, STACK - k * 320 % 4096, thread_main);
    }
    t->context = on;
    t->state = State::Running;
    return t;
}

// Goes on with a thread of the same warp, else with one that has not started, else with any that can.
void switch_away() {
    Block& b = *block;
    Thread* from = thread;
    Thread* next = take_ready(from->warp);
    if (!next && b.started < b.count) next = start_next(nullptr);
    for (unsigned w = 0; !next && w < b.warps; w++) next = take_ready(w);
    if (!next) fail("deadlock: threads wait for others that wait elsewhere");
    thread = next;
    if (next != from) swap(*from->context, *next->context);
}

static void thread_main() {
    Block& b = *block;
    for (;;) {
        b.launch->kernel(b.launch->arguments);
        Thread* me = thread;
        me->state = State::Exited;
        b.exited++;
        for (const AsyncCopy& c : me->copies)
            if (c.group >= me->groups_done) fail("an asynchronous copy was started and never waited for");
        me->copies.clear();
        if (b.at_barrier && b.exited + b.at_barrier == b.count) fail("a thread exits while others wait at __syncthreads");
        if (b.exited == b.count) swap(*me->context, b.host);
        Thread* next = take_ready(me->warp);
        if (!next && b.started < b.count) {
            thread = start_next(me->context); // on this stack, without a switch
            continue;
        }
        for (unsigned w = 0; !next && w < b.warps; w++) next = take_ready(w);
        if (!next) fail("deadlock: some threads exited, others wait for them");
        thread = next;
        swap(*me->context, *next->context);
    }
}

void barrier(const void* site) {
    Block& b = *block;
    thread->site = site;
    if (++b.at_barrier < b.count) {
        if (b.exited && b.exited + b.at_barrier == b.count) fail("__syncthreads after other threads exited");
        thread->state = State::AtBarrier;
        return switch_away();
    }
    b.at_barrier = 0;
    for (unsigned i = 0; i < b.count; i++) {
        if (b.threads[i].site != site) fail("__syncthreads is reached at different places");
        if (&b.threads[i] != thread) make_ready(b.threads[i]);
    }
}

void rendezvous(unsigned mask, void* argument, const void* op, void (*carry_out)(void**, unsigned)) {
    Block& b = *block;
    Thread* me = thread;
    unsigned first = me->warp * 32, there = b.count - first;
    mask &= there >= 32 ? ~0u : (1u << there) - 1;
    if (!(mask >> me->lane & 1)) fail("a lane calls a warp operation whose mask leaves it out");
    me->op = op;
    me->mask = mask;
    me->argument = argument;
    me->state = State::InWarpOp;
    unsigned arrived = b.arrived[me->warp] | 1u << me->lane;
    if ((arrived & mask) != mask) {
        b.arrived[me->warp] = arrived;
        return switch_away(); // the last lane leaves our result
    }
    b.arrived[me->warp] = arrived & ~mask;
    void* arguments[32];
    for (unsigned m = mask; m; m &= m - 1) {
        unsigned lane = __builtin_ctz(m);
        Thread& t = b.threads[first + lane];
        arguments[lane] = t.argument;
        if (t.op != op || t.mask != mask) fail("the lanes of one mask are in different warp operations");
    }
    carry_out(arguments, mask);
    for (unsigned m = mask & ~(1u << me->lane); m; m &= m - 1) make_ready(b.threads[first + __builtin_ctz(m)]);
    me->state = State::Running;
}

// ---- shared memory

constexpr int POISON = 0xff; // NaN in every float type, -1 in integers
constexpr int CANARY = 0xa5;
constexpr size_t STRIP = 128;

static void lay_canaries(char* at) { memset(at, CANARY, STRIP); }

static bool canaries_live(const char* at) {
    for (size_t i = 0; i < STRIP; i++)
        if (static_cast<unsigned char>(at[i]) != CANARY) return false;
    return true;
}

void* SharedArray::get(const char* name, size_t bytes) {
    Block& b = *block;
    if (epoch == b.epoch) return memory;
    size_t start = (b.static_used + 127) & ~size_t(127), padded = (bytes + 15) & ~size_t(15);
    // The limit counts what the device would: without our strips.
    if (start + padded - STRIP * b.arrays.size() > STATIC_SHARED) fail("more than 48 KiB of static shared memory");
    char* at = b.static_memory + start;
    memset(at, POISON, padded);
    lay_canaries(at + padded);
    b.arrays.push_back({name, at + padded});
    b.static_used = start + padded + STRIP;
    epoch = b.epoch;
    return memory = at;
}

void* dynamic_shared() { return block->dynamic_memory; }

// ---- asynchronous copies

void AsyncCopy::run() const {
    memcpy(to, from, bytes);
    memset(static_cast<char*>(to) + bytes, 0, zeros);
}

void start_copy(void* to, const void* from, unsigned bytes, unsigned size) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % size) fail("an asynchronous copy is not aligned to its size");
    AsyncCopy c{to, from, bytes, size - bytes, thread->group};
    // At once, it overwrites what slower threads still read; late, a thread that did not wait reads poison.
    if (block->coin()) return c.run();
    memset(to, POISON, size);
    thread->copies.push_back(c);
}

void finish_copies(unsigned pending) {
    Thread& t = *thread;
    t.groups_done = t.group > pending ? t.group - pending : 0;
    size_t k = 0;
    for (; k < t.copies.size() && t.copies[k].group < t.groups_done; k++) t.copies[k].run();
    t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<ptrdiff_t>(k));
}

// ---- blocks

static uint64_t next_random(uint64_t& s) {
    s ^= s << 13;
    s ^= s >> 7;
    return s ^= s << 17;
}

bool Block::coin() { return launch->order < 2 ? launch->order == 1 : (next_random(random) >> 32 & 1) != 0; }

static char* map(size_t bytes) {
    void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        perror("kernel emulator: mmap");
        abort();
    }
    return static_cast<char*>(p);
}

Block::Block() {
    // Pages are used only where threads touch them. The lowest page of every stack is a guard.
    stacks = map(MAX_THREADS * STACK);
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    for (unsigned i = 0; i < MAX_THREADS; i++) mprotect(stacks + i * STACK, page, PROT_NONE);
    dynamic_memory = map(DYNAMIC_SHARED + STRIP);
    static_memory = map(2 * STATIC_SHARED);
    // Unique to this block's use, for ever: an array's address is never mistaken for an older block's.
    static uint64_t blocks = 0;
    epoch = __atomic_add_fetch(&blocks, 1, __ATOMIC_RELAXED) << 40;
}

bool Block::run(const Launch& l, uint64_t number) {
    launch = &l;
    // Blocks are independent: they start at the last one, or somewhere in the middle.
    uint64_t blocks = uint64_t(l.grid.x) * l.grid.y * l.grid.z;
    if (l.order == 1) number = blocks - 1 - number;
    if (l.order >= 2) number = (number + l.order * uint64_t(0x9E3779B97F4A7C15) % blocks) % blocks;
    index = {unsigned(number % l.grid.x), unsigned(number / l.grid.x % l.grid.y), unsigned(number / l.grid.x / l.grid.y)};
    count = l.block.x * l.block.y * l.block.z;
    warps = (count + 31) / 32;
    started = stacks_used = at_barrier = exited = 0;
    memset(ready, 0, sizeof ready);
    memset(arrived, 0, sizeof arrived);
    random = (uint64_t(l.order) << 32 ^ number) * 0x9E3779B97F4A7C15ull | 1;
    for (unsigned i = 0; i < count; i++) {
        Thread& t = threads[i];
        t.index = {i % l.block.x, i / l.block.x % l.block.y, i / l.block.x / l.block.y};
        t.lane = i % 32;
        t.warp = i / 32;
        t.mask = t.group = t.groups_done = 0;
        t.site = nullptr;
        t.copies.clear();
        order[i] = l.order == 1 ? count - 1 - i : i;
    }
    if (l.order >= 2)
        for (unsigned i = count - 1; i; i--) std::swap(order[i], order[next_random(random) % (i + 1)]);
    epoch++;
    static_used = 0;
    arrays.clear();
    memset(dynamic_memory, POISON, l.shared);
    lay_canaries(dynamic_memory + l.shared);
    error.clear();

    block = this;
    thread = start_next(nullptr);
    swap(host, *thread->context);
    if (error.empty()) {
        const char* name = canaries_live(dynamic_memory + l.shared) ? nullptr : "the dynamic one";
        for (const Array& a : arrays)
            if (!canaries_live(a.end)) name = a.name;
        if (name) {
            char text[256];
            snprintf(text, sizeof text, "%s: block (%u,%u,%u) wrote past the end of a shared array: %s", l.name, index.x, index.y, index.z, name);
            error = text;
        }
    }
    block = nullptr;
    thread = nullptr;
    return error.empty();
}

} // namespace cuemu
