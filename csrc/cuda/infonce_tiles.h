// The kernel: a product of unit rows whose epilogue is the softmax.
//
// One warp has the copy engine bring tiles of both factors, two warpgroups multiply. They share the
// columns' side of each stage but are never at the same step: the first is `lead` steps ahead, so
// that the tensor cores work for one of them while the other turns its sums into exponentials.
#ifndef SIMCSE_FAST_CUDA_INFONCE_TILES_H
#define SIMCSE_FAST_CUDA_INFONCE_TILES_H

#include "epilogue.h"

namespace infonce {

constexpr uint16_t kAllBlocks = (1 << kBlocks) - 1;

__device__ inline void make_barriers(uint32_t shared) {
  for (int stage = 0; stage < kStages; ++stage) {
    hopper::init_barrier(filled(shared, stage), 1);
    hopper::init_barrier(emptied(shared, stage), kBlocks * kConsumers * kGroup / kWarp);
  }
  hopper::init_barrier(turn(shared), 1);
  hopper::publish_barriers();
}

// One thread: fill stage after stage, with this block's rows and its share of the columns.
__device__ inline void produce(const Job &job, const hopper::TensorMap &query,
                               const hopper::TensorMap &key, uint32_t shared) {
  constexpr int kShare = kColumns / kBlocks;
  const int rank = hopper::rank_in_cluster();
  hopper::prefetch(query);
  hopper::prefetch(key);
  Pipeline at;
  for (int tile = hopper::cluster(); tile < job.tiles; tile += hopper::clusters()) {
    const Place place = place_of(tile, job.row_tiles, job.column_tiles);
    const int row = place.row * kClusterRows + rank * kBlockRows;
    const int column = place.column * kColumns + rank * kShare;
    for (int step = 0; step < job.steps; ++step, at.next()) {
      const uint32_t barrier = filled(shared, at.stage);
      // Both blocks' consumers have let go of it, because both blocks' halves are overwritten.
      hopper::wait(emptied(shared, at.stage), at.parity ^ 1);
      hopper::arrive_expecting(barrier, kStageBytes);
      hopper::load(queries(shared, at.stage), query, step * kDepth, row, barrier);
      hopper::load_for(kAllBlocks, keys(shared, at.stage) + rank * kShare * kRowBytes, key,
                       step * kDepth, column, barrier);
    }
  }
}

__device__ inline void let_go(uint32_t shared, int stage, int lane) {
  if (lane < kBlocks) hopper::arrive_at(emptied(shared, stage), lane);
}

// The similarities of 64 rows and 256 columns. Where it `tells`, the second consumer may begin when
// `lead` steps are under way.
__device__ inline void multiply(float (&sum)[kSums], const Job &job, const Seat &seat, bool tells,
                                Pipeline &at) {
  int last = 0;
  for (int step = 0; step < job.steps; ++step, at.next()) {
    hopper::wait(filled(seat.shared, at.stage), at.parity);
    const uint32_t a = queries(seat.shared, at.stage) + seat.consumer * kRows * kRowBytes;
    const uint32_t b = keys(seat.shared, at.stage);
    hopper::begin_products();
#pragma unroll
    for (int k = 0; k < kDepth; k += kStep) {
      hopper::multiply<kRowBytes>(sum, a + 2 * k, b + 2 * k, step > 0 || k > 0);
    }
    hopper::commit_products();
    if (step > 0) {
      hopper::wait_products<1>(sum);
      let_go(seat.shared, last, seat.lane());
    }
    if (tells && step == job.lead - 1) hopper::arrive(turn(seat.shared));
    last = at.stage;
  }
  hopper::wait_products<0>(sum);
  let_go(seat.shared, last, seat.lane());
}

// A warpgroup: multiply tile after tile, and turn each into what is wanted of it.
template <Kind kKind, bool kMasks>
__device__ inline void consume(const Job &job, const hopper::TensorMap &panel, const Seat &seat) {
  const int down = hopper::rank_in_cluster() * kBlockRows + seat.consumer * kRows;
  const bool tells = job.lead > 0 && seat.consumer == 0 && seat.thread == 0;
  const bool listens = job.lead > 0 && seat.consumer == 1;
  const Scale scale = scale_of(job.in);
  Pipeline at;
  uint32_t turns = 0;
  for (int i = hopper::cluster(); i < job.tiles; i += hopper::clusters()) {
    const Place place = place_of(i, job.row_tiles, job.column_tiles);
    Tile tile;
    tile.row = int64_t{place.row} * kClusterRows + down;
    tile.column = place.column * kColumns;
    tile.own_row = fragment_row(seat.thread, 0);
    tile.first = tile.column + fragment_column(seat.thread, 0);
    const Row rows[2] = {row_of<kKind, kMasks>(job, tile.row + tile.own_row),
                         row_of<kKind, kMasks>(job, tile.row + tile.own_row + 8)};
    const Column columns[2] = {column_of<kKind, kMasks>(job, tile.column + seat.thread),
                               column_of<kKind, kMasks>(job, tile.column + seat.thread + kGroup)};
    if (listens) hopper::wait(turn(seat.shared), turns++ & 1);
    float x[kSums];
    multiply(x, job, seat, tells, at);
    if constexpr (uses_columns<kKind, kMasks>()) share<kMasks>(columns, job, seat);
    leave_out<kKind, kMasks>(x, job, scale, rows, tile, seat);
    const float bounds[2] = {margin_bound(job, rows[0].positive),
                             margin_bound(job, rows[1].positive)};
    if constexpr (kKind == Kind::kBothSums) {
      sum_both<kMasks>(x, job, scale, bounds, tile, seat);
    } else if constexpr (sums(kKind)) {
      sum_rows<kMasks>(x, job, scale, bounds, tile, seat);
    } else {
      make_gradients<kKind, kMasks>(x, job, scale, rows, bounds, tile, seat);
    }
    if constexpr (stores(kKind)) store(x, panel, tile, seat);
  }
  if (stores(kKind) && seat.thread == 0) hopper::wait_stores<0>();
}

template <Kind kKind, bool kMasks>
__global__ void __launch_bounds__(kThreads, 1)
    infonce_tiles_kernel(const __grid_constant__ hopper::TensorMap query,
                         const __grid_constant__ hopper::TensorMap key,
                         const __grid_constant__ hopper::TensorMap panel,
                         const __grid_constant__ Job job) {
  if (job.in.flag && *job.in.flag != job.in.expected) return;
  const uint32_t shared = hopper::shared_memory();
  const int thread = hopper::thread(), group = thread / kGroup;
  if (thread == 0) make_barriers(shared);
  hopper::cluster_sync();
  if (group == 0) {
    hopper::give_registers<40>();
    if (thread == 0) produce(job, query, key, shared);
    hopper::sync_warp();
  } else {
    hopper::take_registers<232>();
    consume<kKind, kMasks>(job, panel, {shared, group - 1, thread % kGroup});
  }
  hopper::cluster_sync();  // nobody leaves while the other block may still reach its memory
}

}  // namespace infonce

#endif
