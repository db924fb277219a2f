// Spreads the blocks of a launch over the host's threads.
#include "launch.h"
#include "memory.h"
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <thread>

namespace cuemu {

static thread_local std::string last_error;

namespace {

struct Job {
    const Launch& launch;
    uint64_t blocks;
    std::atomic<uint64_t> next{0};
    std::atomic<bool> failed{false};
    // Below: guarded by the pool's mutex.
    std::string error;
    unsigned entered = 0, left = 0; // helpers

    Job(const Launch& l, uint64_t n) : launch(l), blocks(n) {}
};

// Threads that live as long as the process, and blocks that are lent to the launch that runs one: launches create neither.
// Never destroyed: threads still wait in it when the process ends.
struct Pool {
    std::mutex mutex;
    std::condition_variable work, done;
    std::deque<Job*> jobs;
    std::vector<Block*> idle;
    unsigned helpers;

    Pool() {
        unsigned n = std::thread::hardware_concurrency();
        if (const char* s = getenv("COTANGENT_EMULATOR_THREADS")) n = unsigned(atoi(s));
        helpers = n > 1 ? n - 1 : 0;
        for (unsigned i = 0; i < helpers; i++) std::thread([this] { help(); }).detach();
    }

    Block* borrow() {
        std::lock_guard<std::mutex> lock(mutex);
        if (idle.empty()) return new Block;
        Block* b = idle.back();
        idle.pop_back();
        return b;
    }

    void give_back(Block* b) {
        std::lock_guard<std::mutex> lock(mutex);
        idle.push_back(b);
    }

    // Runs blocks of the job until none are left.
    void run(Job& job) {
        Block* b = borrow();
        uint64_t i;
        while (!job.failed && (i = job.next.fetch_add(1)) < job.blocks) {
            if (b->run(job.launch, i)) continue;
            std::lock_guard<std::mutex> lock(mutex);
            if (!job.failed.exchange(true)) job.error = b->error;
        }
        give_back(b);
    }

    void help() {
        catch_faults();
        std::unique_lock<std::mutex> lock(mutex);
        for (;;) {
            work.wait(lock, [this] { return !jobs.empty(); });
            Job* job = jobs.front();
            job->entered++;
            lock.unlock();
            run(*job);
            lock.lock();
            // It has no blocks left: nobody else need look at it. Past `left`, it may be gone.
            if (!jobs.empty() && jobs.front() == job) jobs.pop_front();
            job->left++;
            done.notify_all();
        }
    }

    void launch(Job& job) {
        bool spread = helpers && job.blocks > 1 && job.blocks * job.launch.block.x * job.launch.block.y * job.launch.block.z >= 8192;
        if (!spread) return run(job);
        {
            std::lock_guard<std::mutex> lock(mutex);
            jobs.push_back(&job);
        }
        work.notify_all();
        run(job);
        std::unique_lock<std::mutex> lock(mutex);
        for (auto i = jobs.begin(); i != jobs.end(); ++i) {
            if (*i == &job) {
                jobs.erase(i);
                break;
            }
        }
        done.wait(lock, [&] { return job.entered == job.left; });
    }
};

Pool& pool() {
    static Pool* p = new Pool;
    return *p;
}

} // namespace

int run(const Launch& l) {
    auto refuse = [&](const char* why) {
        last_error = std::string(l.name) + ": " + why;
        return 1;
    };
    uint64_t threads = uint64_t(l.block.x) * l.block.y * l.block.z;
    if (threads == 0 || threads > MAX_THREADS) return refuse("a block must have 1 to 1024 threads");
    if (l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0) return refuse("the grid is empty");
    if (l.grid.x > 0x7fffffffu || l.grid.y > 65535 || l.grid.z > 65535) return refuse("the grid is too large");
    if (l.shared > DYNAMIC_SHARED) return refuse("more than 227 KiB of dynamic shared memory");
    if (block) return refuse("a kernel cannot launch another");
    catch_faults();
    Job job(l, uint64_t(l.grid.x) * l.grid.y * l.grid.z);
    pool().launch(job);
    if (!job.failed) return 0;
    last_error = job.error;
    return 2;
}

} // namespace cuemu

// Why the last launch of the calling thread failed; valid until its next.
extern "C" const char* cuemu_last_error() { return cuemu::last_error.c_str(); }
