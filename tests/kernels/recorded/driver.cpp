// Runs recorded calls of the kernels without Python, for an emulated processor and for ThreadSanitizer (tests/isa.py).
//
// Each file that is named has one call, as format.py writes it: all numbers are 8 bytes, in this order.
//
//   symbol    its length, then its characters
//   returns   what the function must return
//   buffers   how many; for each its size in bytes and its contents; the first is the struct of the call
//   pointers  how many; for each: in which buffer it stands, at which byte; to which buffer it points, to which byte
//   outputs   how many; for each: buffer, first byte, dtype (see Output), count, limit, and the expected doubles
//
// An output is right if the root mean square of its errors is at most its limit. No other buffer may change.

#include <dlfcn.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

struct Reader {
    FILE *file;
    bool failed = false;

    explicit Reader(const char *path) : file(std::fopen(path, "rb")), failed(!file) {}
    ~Reader() {
        if (file) std::fclose(file);
    }
    Reader(const Reader &) = delete;

    template <typename T>
    std::vector<T> many(int64_t count) {
        std::vector<T> all(failed ? 0 : count);
        failed = failed || std::fread(all.data(), sizeof(T), all.size(), file) != all.size();
        return all;
    }
    int64_t number() {
        const auto one = many<int64_t>(1);
        return failed ? 0 : one[0];
    }
};

struct Pointer {
    int64_t buffer, at, target, target_at;
};

struct Output {
    enum Dtype { FLOAT32, BFLOAT16, INT64 };
    int64_t buffer, at, dtype, count;
    double limit;
    std::vector<double> expected;

    double found(const char *from, int64_t i) const {
        if (dtype == INT64) {
            int64_t integer;
            memcpy(&integer, from + i * sizeof integer, sizeof integer);
            return (double)integer;
        }
        uint32_t bits = 0;
        if (dtype == FLOAT32)
            memcpy(&bits, from + i * sizeof bits, sizeof bits);
        else
            memcpy((char *)&bits + 2, from + i * 2, 2);  // bfloat16 is the upper half of a float32
        float number;
        memcpy(&number, &bits, sizeof number);
        return number;
    }
    double error(const char *buffer_start) const {
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) {
            const double difference = found(buffer_start + at, i) - expected[i];
            sum += difference * difference;
        }
        return std::sqrt(sum / (double)count);
    }
};

// Memory of exactly one buffer's size, aligned as torch aligns it.
struct Memory {
    char *start = nullptr;
    explicit Memory(const std::vector<char> &contents) {
        if (posix_memalign((void **)&start, 64, contents.size() + (contents.size() == 0))) std::abort();
        memcpy(start, contents.data(), contents.size());
    }
    ~Memory() { std::free(start); }
    Memory(const Memory &) = delete;
};

// Whether the call in this file is right; what is wrong is printed.
bool run(void *library, const char *path) {
    Reader reader(path);
    const auto characters = reader.many<char>(reader.number());
    const std::string symbol(characters.begin(), characters.end());
    const int64_t returns = reader.number();
    std::vector<std::vector<char>> contents(reader.number());
    for (auto &one : contents) one = reader.many<char>(reader.number());
    std::vector<Pointer> pointers(reader.number());
    for (auto &one : pointers) one = {reader.number(), reader.number(), reader.number(), reader.number()};
    std::vector<Output> outputs(reader.number());
    for (auto &one : outputs) {
        one.buffer = reader.number(), one.at = reader.number(), one.dtype = reader.number();
        one.count = reader.number();
        const auto limit = reader.many<double>(1);
        one.limit = reader.failed ? 0 : limit[0];
        one.expected = reader.many<double>(one.count);
    }
    const auto function = (int (*)(const void *))dlsym(library, symbol.c_str());
    if (reader.failed || contents.empty() || !function)
        return std::printf("%s: %s\n", path, function ? "cannot be read" : "there is no such function"), false;

    std::vector<Memory *> memory;
    for (const auto &one : contents) memory.push_back(new Memory(one));
    for (const Pointer &one : pointers) {
        const char *to = memory[one.target]->start + one.target_at;
        memcpy(memory[one.buffer]->start + one.at, &to, sizeof to);
        memcpy(contents[one.buffer].data() + one.at, &to, sizeof to);
    }
    const int returned = function(memory[0]->start);
    bool right = returned == returns;
    if (!right) std::printf("%s: returned %d and not %d\n", path, returned, (int)returns);
    std::vector<bool> may_change(contents.size());
    for (const Output &one : outputs) {
        may_change[one.buffer] = true;
        const double error = one.error(memory[one.buffer]->start);
        if (error <= one.limit) continue;  // not for NaN
        std::printf("%s: an error of %g, of which %g is allowed\n", path, error, one.limit);
        right = false;
    }
    for (size_t i = 0; i < contents.size(); ++i) {
        if (!may_change[i] && memcmp(memory[i]->start, contents[i].data(), contents[i].size())) {
            std::printf("%s: buffer %d has changed\n", path, (int)i);
            right = false;
        }
        delete memory[i];
    }
    return right;
}

// Whether the structs of calls.h have the sizes that they were recorded with.
bool agrees(void *library, const char *path) {
    Reader reader(path);
    const auto function = (const int64_t *(*)())dlsym(library, "prenorm_sizes");
    if (!function) return false;
    const int64_t *sizes = function();
    for (int64_t recorded; (recorded = reader.number()); ++sizes)
        if (*sizes != recorded) return std::printf("%s: %d bytes, not %d\n", path, (int)*sizes, (int)recorded), false;
    return !reader.failed && *sizes == 0;
}

}  // namespace

// driver library sizes calls...: 0 where all calls are right, 1 where some are wrong, 2 where they cannot be made.
int main(int count, char **paths) {
    void *library = count > 3 ? dlopen(paths[1], RTLD_NOW) : nullptr;
    if (!library) return std::printf("%s\n", count > 3 ? dlerror() : "there are no calls"), 2;
    if (!agrees(library, paths[2])) return std::puts("the library has other structs"), 2;
    int wrong = 0;
    for (int i = 3; i < count; ++i) wrong += !run(library, paths[i]);
    std::printf("%d calls, %d wrong\n", count - 3, wrong);
    return wrong != 0;
}
