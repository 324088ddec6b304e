// The C interface of the products with a softmax in their epilogue, on Hopper.
#include "infonce_tiles.h"

#include <launch.h>

#include <algorithm>
#include <cstdint>

namespace infonce {
namespace {

bool is_aligned(const void *pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool valid(const sf_infonce_products &in) {
  constexpr int64_t kMost = INT32_MAX - (1 << 16);  // and a tile further
  const bool sizes = in.rows >= 0 && in.columns >= 0 && in.depth > 0 && in.depth % kDepth == 0 &&
                     in.rows < kMost && in.width < kMost && in.columns <= in.width;
  const bool pairs = !in.query_ids == !in.key_ids;
  return sizes && pairs && in.query && in.key && in.numbers && in.labels && in.lead >= 0 &&
         is_aligned(in.query) && is_aligned(in.key) && is_aligned(in.panel) &&
         (in.panel == nullptr || in.stride % 8 == 0);
}

int64_t tiles_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

template <Kind kKind, bool kMasks>
int32_t launch(const Job &job) {
  const sf_infonce_products &in = job.in;
  hopper::TensorMap query, key, panel;
  const bool made =
      hopper::use(in.device) &&
      hopper::make_tensor_map(query, in.query, in.rows, in.depth, in.depth, kBlockRows, kDepth) &&
      hopper::make_tensor_map(key, in.key, in.columns, in.depth, in.depth, kColumns / kBlocks,
                              kDepth) &&
      (stores(kKind)
           ? hopper::make_tensor_map(panel, in.panel, in.rows, in.width, in.stride, kRows, kSlice)
           : (panel = query, true));
  const bool launched = made && hopper::launch<infonce_tiles_kernel<kKind, kMasks>>(
                                    in.device, in.stream, kBlocks, job.tiles, kThreads,
                                    kSharedBytes + kSharedAlignment, query, key, panel, job);
  return launched ? SF_OK : SF_FAILED;
}

template <Kind kKind>
int32_t launch(Job job) {
  const sf_infonce_products &in = job.in;
  if (!valid(in)) return SF_BAD_ARGUMENT;
  const int64_t rows = tiles_of(in.rows, kClusterRows), columns = tiles_of(in.width, kColumns);
  if (rows * columns == 0) return SF_OK;
  if (rows * columns > INT32_MAX - (1 << 16)) return SF_BAD_ARGUMENT;  // and a turn further
  job.row_tiles = static_cast<int>(rows);
  job.column_tiles = static_cast<int>(columns);
  job.tiles = job.row_tiles * job.column_tiles;
  job.steps = static_cast<int>(in.depth / kDepth);
  // Ahead by as much as the stages hold, the first consumer has its columns kept for the second;
  // where the stages hold more than a tile it could be a whole turn ahead.
  job.lead = job.steps > kStages ? std::min(in.lead, kStages - 1) : 0;
  return in.query_ids || in.positive ? launch<kKind, true>(job) : launch<kKind, false>(job);
}

}  // namespace
}  // namespace infonce

using infonce::Job;
using infonce::Kind;

extern "C" int32_t sf_abi_version(void) { return SF_ABI_VERSION; }

extern "C" const char *sf_cuda_refusal(void) { return hopper::refusal; }

extern "C" int32_t sf_infonce_sums_cuda(const sf_infonce_products *in, const sf_infonce_sums *out) {
  if (in == nullptr || out == nullptr || out->row_sums == nullptr) return SF_BAD_ARGUMENT;
  if (in->panel && out->column_sums) return SF_BAD_ARGUMENT;
  if (in->positive && out->column_sums && !in->opposite) return SF_BAD_ARGUMENT;
  const Job job = {*in, *out, {}};
  if (out->column_sums) return infonce::launch<Kind::kBothSums>(job);
  return in->panel ? infonce::launch<Kind::kPanel>(job) : infonce::launch<Kind::kRowSums>(job);
}

extern "C" int32_t sf_infonce_gradients_cuda(const sf_infonce_products *in,
                                             const sf_infonce_gradients *state) {
  if (in == nullptr || state == nullptr || state->row_factor == nullptr) return SF_BAD_ARGUMENT;
  if (in->panel == nullptr || state->own == nullptr) return SF_BAD_ARGUMENT;
  if (in->positive && state->column_factor && !in->opposite) return SF_BAD_ARGUMENT;
  const Job job = {*in, {}, *state};
  return state->column_factor ? infonce::launch<Kind::kBothGradients>(job)
                              : infonce::launch<Kind::kRowGradients>(job);
}
