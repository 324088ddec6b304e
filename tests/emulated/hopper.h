// The functions of csrc/cuda/hopper.h, for the emulated machine.
#ifndef SIMCSE_FAST_TESTS_HOPPER_H
#define SIMCSE_FAST_TESTS_HOPPER_H

#include "machine.h"

#include <cmath>

#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

namespace hopper {

using emulated::kGroup;
using emulated::kWarp;
using TensorMap = emulated::Matrix;

inline emulated::Machine &machine() { return *emulated::Machine::now; }

inline int thread() { return machine().thread().index; }
inline int rank_in_cluster() { return machine().thread().block; }
inline int cluster() { return machine().cluster; }
inline int clusters() { return machine().clusters; }
inline uint32_t shared_memory() { return 1024; }

inline void cluster_sync() {
  emulated::Machine &m = machine();
  m.meet(m.of_cluster, m.blocks() * static_cast<int>(m.block().lanes.size()), "the cluster", [] {});
}

template <int kCount>
void give_registers() {
  static_assert(kCount % 8 == 0 && kCount >= 24);
}
template <int kCount>
void take_registers() {
  static_assert(kCount % 8 == 0 && kCount <= 256);
}

// --- barriers

inline void init_barrier(uint32_t barrier, int arrivals) {
  if (barrier % 8 != 0 || barrier + 8 > emulated::kArena) machine().fail("a barrier's address");
  machine().block().barriers[barrier] = {arrivals, arrivals, 0, 0};
}
inline void publish_barriers() {}
inline void arrive_at(uint32_t barrier, int rank) { machine().arrive(rank, barrier, 1, 0); }
inline void arrive(uint32_t barrier) { arrive_at(barrier, rank_in_cluster()); }
inline void arrive_expecting(uint32_t barrier, int bytes) {
  machine().arrive(rank_in_cluster(), barrier, 1, bytes);
}
inline void wait(uint32_t barrier, uint32_t parity) {
  const emulated::Barrier &at = machine().barrier(rank_in_cluster(), barrier);
  machine().until([&] { return (at.phase & 1) != parity; }, "a barrier in shared memory");
}
inline void sync(int number, int threads) {
  machine().meet(machine().block().numbered[number], threads, "a numbered barrier", [] {});
}
inline void sync_warp() {
  emulated::Meeting &warp = machine().block().warps[thread() / kWarp];
  machine().meet(warp, kWarp, "its warp", [] {});
}

// --- the copy engine

inline void prefetch(const TensorMap &) {}

inline void load_for(uint16_t blocks, uint32_t to, const TensorMap &from, int column, int row,
                     uint32_t barrier) {
  emulated::Machine &m = machine();
  if (to % 1024 != 0) m.fail("a box that does not begin where swizzles do");
  for (int rank = 0; rank < m.blocks(); ++rank) {
    if (!(blocks >> rank & 1)) continue;
    m.later(emulated::Work::kLoad, [=, &m] {
      const int row_bytes = 2 * from.box_columns;
      for (int i = 0; i < from.box_rows; ++i) {
        for (int j = 0; j < from.box_columns; ++j) {
          const bool inside = row + i < from.rows && column + j < from.columns;
          const uint16_t x = inside ? from.numbers[(row + i) * from.stride + column + j] : 0;
          std::memcpy(
              &m.block(rank).arena.at(emulated::swizzled(to + i * row_bytes + 2 * j, row_bytes)),
              &x, 2);
        }
      }
      m.arrive(rank, barrier, 0, -from.box_rows * row_bytes);
    });
  }
}
inline void load(uint32_t to, const TensorMap &from, int column, int row, uint32_t barrier) {
  load_for(static_cast<uint16_t>(1 << rank_in_cluster()), to, from, column, row, barrier);
}

inline void store(const TensorMap &to, int column, int row, uint32_t from) {
  emulated::Machine &m = machine();
  emulated::Thread &owner = m.thread();
  emulated::Block &block = m.block();
  m.check_published(owner);
  const size_t number = owner.read.size();
  owner.read.push_back(false);
  m.later(emulated::Work::kStore, [=, &owner, &block] {
    const int row_bytes = 2 * to.box_columns;
    for (int i = 0; i < to.box_rows; ++i) {
      for (int j = 0; j < to.box_columns; ++j) {
        if (row + i >= to.rows || column + j >= to.columns) continue;
        std::memcpy(&to.numbers[(row + i) * to.stride + column + j],
                    &block.arena.at(emulated::swizzled(from + i * row_bytes + 2 * j, row_bytes)),
                    2);
      }
    }
    owner.read[number] = true;
  });
}
template <int kPending>
void wait_stores() {
  const emulated::Thread &owner = machine().thread();
  machine().until([&] { return owner.all_read_but(kPending); }, "its stores");
}

// --- shared memory

inline void put(uint32_t at, uint32_t word) {
  if (at % 4 != 0) machine().fail("an address that is no multiple of 4");
  std::memcpy(&machine().block().arena.at(at), &word, 4);
  machine().thread().dirty = true;
}
inline float get(uint32_t at) {
  float x;
  std::memcpy(&x, &machine().block().arena.at(at), 4);
  return x;
}
struct Two {
  float low, high;
};
inline Two get_two(uint32_t at) {
  if (at % 8 != 0) machine().fail("an address that is no multiple of 8");
  return {get(at), get(at + 4)};
}
struct TwoIds {
  int64_t low, high;
};
inline TwoIds get_ids(uint32_t at) {
  if (at % 16 != 0) machine().fail("an address that is no multiple of 16");
  TwoIds x;
  std::memcpy(&x, &machine().block().arena.at(at), sizeof x);
  return x;
}
inline void publish_writes() { machine().thread().dirty = false; }

// --- arithmetic

inline float exp2_of(float x) { return x < -126 ? 0 : std::exp2(x); }

inline uint32_t two_bf16(float low, float high) {
  const auto rounded = [](float x) {
    const uint32_t bits = __float_as_uint(x);
    return x != x ? 0x7fffu : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
}

// What all lanes of the warp gave, from the lane that a mask leads to.
inline float from_lane(float x, int mask) {
  emulated::Machine &m = machine();
  emulated::Block &block = m.block();
  const int index = thread(), first = index / kWarp * kWarp;
  block.lanes[index] = x;
  m.meet(block.warps[index / kWarp], kWarp, "its warp",
         [&] { std::copy_n(block.lanes.begin() + first, kWarp, block.seen.begin() + first); });
  return block.seen[index ^ mask];
}
inline bool any_lane(bool x) {
  float any = x;
  for (int mask = 1; mask < kWarp; mask *= 2) any += from_lane(any, mask);
  return any > 0;
}

// --- products

constexpr int kSums = 128;

inline emulated::Group &group() { return machine().block().groups[thread() / kGroup]; }

inline void begin_products() { machine().thread().fenced = true; }

template <int kRowBytes>
void multiply(float (&d)[kSums], uint32_t a, uint32_t b, bool add) {
  emulated::Machine &m = machine();
  emulated::Thread &t = m.thread();
  if (!t.fenced) m.fail("a product without a fence before");
  std::vector<emulated::Product> &products = group().products;
  if (t.issued == products.size()) {
    products.emplace_back();
    products.back().a = a, products.back().b = b, products.back().add = add;
    products.back().row_bytes = kRowBytes;
  }
  emulated::Product &product = products[t.issued++];
  if (product.a != a || product.b != b || product.add != add) m.fail("threads do not agree");
  product.group = t.groups;
  product.sums[t.index % kGroup] = d;
  if (++product.threads == kGroup) product.due = m.due(emulated::Work::kProduct);
}
inline void commit_products() { ++machine().thread().groups; }

template <int kPending>
void wait_products(float (&)[kSums]) {
  emulated::Thread &t = machine().thread();
  const std::vector<emulated::Product> &products = group().products;
  machine().until(
      [&] {
        for (size_t i = t.issued; i-- > 0 && !products[i].done;) {
          if (products[i].group < t.groups - kPending) return false;
        }
        return true;
      },
      "its products");
  t.fenced = false;
}

}  // namespace hopper

#endif
