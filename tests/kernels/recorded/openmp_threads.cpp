// The part of OpenMP that the kernels use, on std::thread, for ThreadSanitizer.
//
// ThreadSanitizer does not know how GCC's libgomp synchronises: it sees none of libgomp's futexes and takes every
// barrier for a race. LLVM's OpenMP tells it (Archer), but the kernels use GCC's vectors, which Clang does not compile.
// So GCC compiles them with OpenMP as for users, and this file takes the place of libgomp: its threads, mutexes and
// condition variables are those that ThreadSanitizer understands, so what it reports is a race in a kernel.

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

struct Team {
    const unsigned size;
    std::mutex mutex;
    std::condition_variable all_are_here;
    unsigned waiting = 0, barriers = 0, singles = 0;
};

thread_local Team *team = nullptr;
thread_local unsigned number = 0;   // of this thread in its team
thread_local unsigned singles = 0;  // that this thread has met

void work(Team *ours, unsigned i, void (*function)(void *), void *data) {
    team = ours, number = i, singles = 0;
    function(data);
    team = nullptr, number = 0;
}

}  // namespace

extern "C" {

void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned) {
    Team ours{threads, {}, {}};
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; ++i) others.emplace_back(work, &ours, i, function, data);
    work(&ours, 0, function, data);
    for (auto &one : others) one.join();
}

void GOMP_barrier() {
    std::unique_lock<std::mutex> lock(team->mutex);
    const unsigned mine = team->barriers;
    if (++team->waiting < team->size) return team->all_are_here.wait(lock, [=] { return team->barriers != mine; });
    team->waiting = 0, ++team->barriers;
    team->all_are_here.notify_all();
}

// Whether this thread is the one that does what one alone must do.
bool GOMP_single_start() {
    const std::lock_guard<std::mutex> lock(team->mutex);
    if (singles++ < team->singles) return false;
    ++team->singles;
    return true;
}

int omp_get_thread_num() { return (int)number; }
int omp_get_num_threads() { return team ? (int)team->size : 1; }
}
