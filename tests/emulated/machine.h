// A cluster of blocks on a CPU, one fiber a thread, for kernels that were written for Hopper.
//
// Whatever a GPU does asynchronously happens here late and in an order that a seed decides: copies
// arrive, products are summed and stores are read some time between their start and the wait for
// them. A wait that is missing reads numbers that are not there yet, a stage that is let go of too
// early is overwritten, and threads that wait for each other are reported with what they wait for.
#ifndef SIMCSE_FAST_TESTS_MACHINE_H
#define SIMCSE_FAST_TESTS_MACHINE_H

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulated {

constexpr int kWarp = 32, kGroup = 128, kArena = 227 * 1024;
constexpr size_t kStack = 96 * 1024;

struct Matrix {  // a tensor map of bf16 numbers
  uint16_t *numbers = nullptr;
  int64_t rows = 0, columns = 0, stride = 0;
  int box_rows = 0, box_columns = 0;
};

enum class Work { kLoad, kStore, kProduct };

struct Barrier {  // in shared memory
  int count = 0, pending = 0, bytes = 0;
  uint32_t phase = 0;
};

struct Meeting {  // of the threads of a warp, of a numbered barrier or of a cluster
  int arrived = 0;
  uint32_t generation = 0;
};

struct Product {
  uint32_t a = 0, b = 0;
  int row_bytes = 0;
  bool add = false, done = false;
  int threads = 0, group = 0;
  size_t due = 0;
  float *sums[kGroup] = {};
};

struct Group {  // four warps that multiply together
  std::vector<Product> products;
  size_t next = 0;  // to be summed
};

struct Thread {
  ucontext_t start;
  jmp_buf goes_on;
  bool started = false;
  std::unique_ptr<char[]> stack;
  int block = 0, index = 0;
  bool done = false;
  const char *waits = "";
  size_t issued = 0;  // products
  int groups = 0;     // committed
  bool fenced = false, dirty = false;
  std::vector<bool> read;  // of its stores: whether their shared memory has been read

  bool all_read_but(size_t last) const {
    for (size_t i = 0; i + last < read.size(); ++i) {
      if (!read[i]) return false;
    }
    return true;
  }
};

struct Block {
  std::vector<uint8_t> arena = std::vector<uint8_t>(kArena, 0xff);  // NaN in every type
  std::map<uint32_t, Barrier> barriers;
  std::map<int, Meeting> numbered;
  std::vector<Meeting> warps;
  std::vector<float> lanes, seen;  // what the lanes of each warp give, and what they get
  std::vector<Group> groups;
  int alive = 0;
};

inline float from_bf16(uint16_t x) {
  const uint32_t bits = uint32_t{x} << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}

// Where a byte stands whose address, in rows of 64 or 128 bytes, is this one.
inline uint32_t swizzled(uint32_t address, int row_bytes) {
  return address ^ (address >> 3 & (row_bytes == 64 ? 0x30 : 0x70));
}

class Machine {
 public:
  inline static Machine *now = nullptr;
  int cluster = 0, clusters = 0;
  Meeting of_cluster;

  Machine(int blocks, int threads, uint32_t seed) : random_(seed), blocks_(blocks) {
    constexpr size_t kSlow[] = {2, 30, 3000};
    for (size_t &slow : slow_) slow = kSlow[random_() % 3];
    for (int b = 0; b < blocks; ++b) {
      Block &block = blocks_[b];
      block.alive = threads;
      block.warps.resize(threads / kWarp);
      block.lanes.resize(threads), block.seen.resize(threads);
      block.groups.resize(threads / kGroup);
      for (int t = 0; t < threads; ++t) {
        threads_.push_back(std::make_unique<Thread>());
        threads_.back()->block = b, threads_.back()->index = t;
      }
    }
  }

  // Run a body in every thread until all have returned; throws what went wrong.
  void run(const std::function<void()> &body) {
    now = this;
    body_ = &body;
    for (auto &thread : threads_) {
      thread->stack.reset(new char[kStack]);  // not filled with zeros
      getcontext(&thread->start);
      thread->start.uc_stack.ss_sp = thread->stack.get();
      thread->start.uc_stack.ss_size = kStack;
      makecontext(&thread->start, enter, 0);
    }
    while (alive() && error_.empty()) pass();
    if (error_.empty()) settle();
    now = nullptr;
    if (!error_.empty()) throw std::runtime_error(error_);
  }

  Thread &thread() { return *current_; }
  Block &block() { return blocks_[current_->block]; }
  Block &block(int rank) { return blocks_.at(rank); }
  int blocks() const { return static_cast<int>(blocks_.size()); }

  // Come back when it is so.
  template <typename Condition>
  void until(Condition ready, const char *what) {
    while (!ready()) {
      current_->waits = what;
      if (_setjmp(current_->goes_on) == 0) _longjmp(scheduler_, 1);
    }
    current_->waits = "";
    ++progress_;
  }

  // What the device does by itself; when, in turns of a warp, depends on how slow it is at it.
  void later(Work work, std::function<void()> happens) { events_.push_back({due(work), happens}); }
  size_t due(Work work) { return moment_ + random_() % slow_[static_cast<int>(work)]; }

  Barrier &barrier(int rank, uint32_t address) {
    const auto found = blocks_.at(rank).barriers.find(address);
    if (found == blocks_[rank].barriers.end()) fail("a barrier that was not made");
    if (blocks_[rank].alive == 0) fail("a barrier of a block that has left");
    return found->second;
  }

  void arrive(int rank, uint32_t address, int arrivals, int bytes) {
    Barrier &at = barrier(rank, address);
    if (arrivals > at.pending) fail("one arrival too many at a barrier");
    at.pending -= arrivals, at.bytes += bytes;
    if (at.pending == 0 && at.bytes == 0) at.pending = at.count, ++at.phase;
  }

  // Wait for all of `threads`; the last one lets them all go, and does something before.
  template <typename Last>
  void meet(Meeting &meeting, int threads, const char *what, Last last) {
    const uint32_t generation = meeting.generation;
    if (++meeting.arrived == threads) {
      last();
      meeting.arrived = 0, ++meeting.generation;
    }
    until([&] { return meeting.generation != generation; }, what);
  }

  // What a warpgroup wrote is there for the copy engine, because all of its threads said so.
  void check_published(const Thread &owner) {
    for (const auto &thread : threads_) {
      const bool same = thread->block == owner.block;
      if (same && thread->index / kGroup == owner.index / kGroup && thread->dirty) {
        fail("a store of what was not published");
      }
    }
  }

  [[noreturn]] void fail(const std::string &what) { throw std::runtime_error(what); }

 private:
  static void enter() {
    Machine &machine = *now;
    Thread &thread = *machine.current_;
    try {
      (*machine.body_)();
      if (!thread.all_read_but(0)) machine.fail("a thread left before its stores were read");
    } catch (const std::exception &error) {
      char where[64];
      std::snprintf(where, sizeof where, "block %d, thread %d: ", thread.block, thread.index);
      machine.error_ = where + std::string(error.what());
    }
    thread.done = true;
    --machine.blocks_[thread.block].alive;
    ++machine.progress_;
    _longjmp(machine.scheduler_, 1);
  }

  bool alive() const {
    for (const Block &block : blocks_) {
      if (block.alive > 0) return true;
    }
    return false;
  }

  // Every warp once, most of the time, in any order, and what goes on beside them.
  void pass() {
    const size_t before = progress_, warps = threads_.size() / kWarp;
    const bool all = idle_ > 0;  // nothing else can happen, so time passes
    if (all) skip();
    std::vector<size_t> order(warps);
    for (size_t i = 0; i < warps; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random_);
    bool some = beside();
    for (const size_t warp : order) {
      if (!all && random_() % 4 == 0) continue;
      for (size_t last = progress_ - 1; last != progress_ && error_.empty();) {
        last = progress_;
        for (int lane = 0; lane < kWarp; ++lane) resume(*threads_[warp * kWarp + lane]);
      }
      ++moment_;
      some |= beside();
    }
    idle_ = some || progress_ != before ? 0 : idle_ + 1;
    if (idle_ > 2) error_ = "all threads wait:" + waiting();
  }

  void resume(Thread &thread) {
    if (thread.done || !error_.empty()) return;
    current_ = &thread;
    if (_setjmp(scheduler_) != 0) return;
    if (thread.started) _longjmp(thread.goes_on, 1);  // without the system call of swapcontext
    thread.started = true;
    setcontext(&thread.start);
  }

  // To the moment at which something happens next.
  void skip() {
    size_t next = SIZE_MAX;
    for (const Event &event : events_) next = std::min(next, event.due);
    for (const Block &block : blocks_) {
      for (const Group &group : block.groups) {
        if (group.next == group.products.size()) continue;
        const Product &product = group.products[group.next];
        if (product.threads == kGroup) next = std::min(next, product.due);
      }
    }
    if (next != SIZE_MAX) moment_ = std::max(moment_, next);
  }

  // The copies and products whose time has come.
  bool beside() {
    bool some = false;
    try {
      for (Block &block : blocks_) {
        for (Group &group : block.groups) {
          for (; group.next < group.products.size(); ++group.next, some = true) {
            Product &product = group.products[group.next];
            if (product.threads < kGroup || product.due > moment_) break;
            sum(block, product);
          }
        }
      }
      for (size_t i = 0; i < events_.size();) {
        if (events_[i].due > moment_) {
          ++i;
          continue;
        }
        const auto happens = std::move(events_[i].happens);
        events_.erase(events_.begin() + static_cast<std::ptrdiff_t>(i));
        happens();
        some = true;
      }
    } catch (const std::exception &error) {
      error_ = error.what();
    }
    return some;
  }

  void settle() {
    while (!events_.empty() && error_.empty()) skip(), beside();
  }

  static void sum(const Block &block, Product &product) {
    constexpr int kRows = 64, kColumns = 256, kDepth = 16;
    const auto number = [&](uint32_t matrix, int row, int k) {
      uint16_t bits;
      std::memcpy(
          &bits,
          &block.arena.at(swizzled(matrix + row * product.row_bytes + 2 * k, product.row_bytes)),
          2);
      return from_bf16(bits);
    };
    std::vector<float> a(kRows * kDepth), b(kColumns * kDepth), c(kRows * kColumns);
    for (int i = 0; i < kRows * kDepth; ++i) a[i] = number(product.a, i / kDepth, i % kDepth);
    for (int i = 0; i < kColumns * kDepth; ++i) {
      b[i % kDepth * kColumns + i / kDepth] = number(product.b, i / kDepth, i % kDepth);
    }
    for (int i = 0; i < kRows; ++i) {
      for (int k = 0; k < kDepth; ++k) {
        for (int j = 0; j < kColumns; ++j) {
          c[i * kColumns + j] += a[i * kDepth + k] * b[k * kColumns + j];
        }
      }
    }
    for (int t = 0; t < kGroup; ++t) {  // PTX ISA, "WGMMA .m64nNk16 register fragment of D"
      for (int n = 0; n < kColumns / 8; ++n) {
        for (int i = 0; i < 4; ++i) {
          const int row = t / kWarp * 16 + t % kWarp / 4 + i / 2 * 8;
          float &d = product.sums[t][4 * n + i];
          d = (product.add ? d : 0) + c[row * kColumns + 8 * n + t % 4 * 2 + i % 2];
        }
      }
    }
    product.done = true;
  }

  std::string waiting() {
    std::map<std::string, int> counts;
    for (const auto &thread : threads_) {
      if (!thread->done) ++counts[thread->waits];
    }
    std::string text;
    for (const auto &[what, count] : counts) text += ' ' + std::to_string(count) + " for " + what;
    return text;
  }

  std::mt19937 random_;
  std::vector<Block> blocks_;
  std::vector<std::unique_ptr<Thread>> threads_;
  Thread *current_ = nullptr;
  jmp_buf scheduler_;
  const std::function<void()> *body_ = nullptr;
  struct Event {
    size_t due;
    std::function<void()> happens;
  };
  std::vector<Event> events_;
  size_t moment_ = 0, slow_[3];
  std::string error_;
  size_t progress_ = 0;
  int idle_ = 0;
};

}  // namespace emulated

#endif
