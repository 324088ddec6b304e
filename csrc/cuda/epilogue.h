// What leaves a consumer's registers: sums of exponentials, exponentials, gradients.
#ifndef SIMCSE_FAST_CUDA_EPILOGUE_H
#define SIMCSE_FAST_CUDA_EPILOGUE_H

#include "logits.h"

namespace infonce {

// Partial sums of a thread's two rows: two chains of additions each are quicker than one.
using Parts = float[2][2];

// What this tile adds to its rows' sums.
__device__ inline void put_rows(const Parts &parts, const Job &job, const Tile &tile,
                                const Seat &seat) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = parts[r][0] + parts[r][1];
    sum += hopper::from_lane(sum, 1);
    sum += hopper::from_lane(sum, 2);
    if (tile.has_row(job, r) && seat.lane() % 4 == 0) {
      float *out = job.sums.row_sums + tile.column / kColumns * job.in.rows + tile.row;
      out[tile.own_row + 8 * r] = sum;
    }
  }
}

// Sums of rows; exponentials in place of similarities.
template <bool kMasks>
__device__ inline void sum_rows(float (&x)[kSums], const Job &job, const Scale &scale,
                                const float (&bounds)[2], const Tile &tile, const Seat &seat) {
  Parts parts = {};
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int r = i >> 1 & 1;
    x[i] = exponential<kMasks>(scale, x[i], bounds[r]);
    parts[r][i & 1] += x[i];
  }
  put_rows(parts, job, tile, seat);
}

// Two lanes hold two sums each; afterwards each has one of them over both.
__device__ inline float exchange(float low, float high, int mask, int lane) {
  const bool upper = lane & mask;
  return (upper ? high : low) + hopper::from_lane(upper ? low : high, mask);
}

// Sums of 256 columns over the tile's 64 rows; pair(j) is a thread's j-th of 64 columns over its
// two rows.
template <typename Pair>
__device__ inline void sum_columns(Pair pair, const Job &job, const Tile &tile, const Seat &seat) {
  const uint32_t scratch = seat.slice(0);  // (4, 256): a row for each warp
  const int lane = seat.lane(), warp = seat.thread / kWarp;
  float c[32];
#pragma unroll
  for (int j = 0; j < 32; ++j) c[j] = exchange(pair(j), pair(j + 32), 16, lane);
#pragma unroll
  for (int j = 0; j < 16; ++j) c[j] = exchange(c[j], c[j + 16], 8, lane);
#pragma unroll
  for (int j = 0; j < 8; ++j) c[j] = exchange(c[j], c[j + 8], 4, lane);
  hopper::sync(seat.barrier(), kGroup);  // the last tile's have been read
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    // The j-th that is left was the (8 (lane / 4) + j)-th of the thread's 64.
    const int at = fragment_column(lane, 0) + (lane / 4 * 4 + j / 2) * 8 + (j & 1);
    hopper::put(scratch + 4 * (warp * kColumns + at), __float_as_uint(c[j]));
  }
  hopper::sync(seat.barrier(), kGroup);
  if (tile.row >= job.in.rows) return;
  float *out = job.sums.column_sums + tile.row / kRows * job.in.columns + tile.column;
#pragma unroll
  for (int at = seat.thread; at < kColumns; at += kGroup) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w) sum += hopper::get(scratch + 4 * (w * kColumns + at));
    if (tile.column + at < job.in.columns) out[at] = sum;
  }
}

// Sums of rows and columns.
template <bool kMasks>
__device__ inline void sum_both(float (&x)[kSums], const Job &job, const Scale &scale,
                                const float (&bounds)[2], const Tile &tile, const Seat &seat) {
  // The first row's sum of a thread's j-th column; two further is the second's.
  const auto sum_of = [](int j) { return j / 2 * 4 + (j & 1); };
  if (kMasks && job.in.positive) {  // margins leave out different columns
    const uint32_t of_columns = seat.columns() + kBoundsAt + 4 * (tile.first - tile.column);
    Parts parts = {};
    const auto pair = [&](int j) {
      float of_column = 0;
      const float bound = hopper::get(of_columns + 4 * fragment_column(0, sum_of(j)));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float similarity = x[sum_of(j) + 2 * r];
        parts[r][j & 1] += exponential<kMasks>(scale, similarity, bounds[r]);
        of_column += exponential<kMasks>(scale, similarity, bound);
      }
      return of_column;
    };
    sum_columns(pair, job, tile, seat);
    put_rows(parts, job, tile, seat);
  } else {
    sum_rows<kMasks>(x, job, scale, bounds, tile, seat);
    sum_columns([&](int j) { return x[sum_of(j)] + x[sum_of(j) + 2]; }, job, tile, seat);
  }
}

// Exponentials times the factors of row and column, in place of similarities.
template <Kind kKind, bool kMargin>
__device__ inline void weigh(float (&x)[kSums], const Scale &scale, const Row (&rows)[2],
                             const float (&bounds)[2], const Tile &tile, const Seat &seat) {
  const uint32_t mine = seat.columns() + 4 * (tile.first - tile.column);
#pragma unroll
  for (int i = 0; i < kSums; i += 4) {
    const uint32_t at = mine + 4 * fragment_column(0, i);
    hopper::Two factors = {0, 0}, of_columns = {0, 0};
    if (by_column(kKind)) factors = hopper::get_two(at);
    if (by_column(kKind) && kMargin) of_columns = hopper::get_two(at + kBoundsAt);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int r = j >> 1;
      const float e = exponential<kMargin>(scale, x[i + j], bounds[r]);
      float other = e;
      if (by_column(kKind) && kMargin) {  // the directions leave out different columns
        const float bound = j & 1 ? of_columns.high : of_columns.low;
        other = exponential<kMargin>(scale, x[i + j], bound);
      }
      x[i + j] = e * rows[r].factor;
      if (by_column(kKind)) {
        x[i + j] = __builtin_fmaf(other, j & 1 ? factors.high : factors.low, x[i + j]);
      }
    }
  }
}

// Gradients of the logits in place of similarities.
template <Kind kKind, bool kMasks>
__device__ inline void make_gradients(float (&x)[kSums], const Job &job, const Scale &scale,
                                      const Row (&rows)[2], const float (&bounds)[2],
                                      const Tile &tile, const Seat &seat) {
  if (kMasks && job.in.positive) {
    weigh<kKind, true>(x, scale, rows, bounds, tile, seat);
  } else {
    weigh<kKind, false>(x, scale, rows, bounds, tile, seat);
  }
  if (job.in.own == SF_OWN_POSITIVE && holds_label(rows, tile)) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) {
      const Row &row = rows[i >> 1 & 1];
      x[i] = is_own(row, tile, i) ? row.own_gradient : x[i];
    }
  }
}

// Write 64 x 256 numbers in bf16, slice by slice through shared memory and the copy engine.
__device__ inline void store(const float (&x)[kSums], const hopper::TensorMap &panel,
                             const Tile &tile, const Seat &seat) {
  // Slices begin where swizzles do, and eight rows further down they are the same: what is left of
  // the swizzle is one "xor" for each eight columns.
  const uint32_t at = seat.slice(0) + swizzled(fragment_row(seat.thread, 0) * kSliceRowBytes) +
                      2 * fragment_column(seat.thread, 0);
#pragma unroll
  for (int s = 0; s < kColumns / kSlice; ++s) {
    const int buffer = s % kSlices;
    if (seat.thread == 0) hopper::wait_stores<kSlices - 1>();
    hopper::sync(seat.barrier(), kGroup);  // the slice may be filled
#pragma unroll
    for (int i = 0; i < kSums / 4; i += 2) {
      const int from = s * (kSums / 4) + i;
      const int down = (i >> 1 & 1) * 8 * kSliceRowBytes, along = 2 * fragment_column(0, i);
      hopper::put((at ^ along) + buffer * kSliceBytes + down,
                  hopper::two_bf16(x[from], x[from + 1]));
    }
    hopper::publish_writes();
    hopper::sync(seat.barrier(), kGroup);  // all of it is filled
    if (seat.thread == 0) {
      hopper::store(panel, tile.column + s * kSlice, static_cast<int>(tile.row),
                    seat.slice(buffer));
    }
  }
}

}  // namespace infonce

#endif
