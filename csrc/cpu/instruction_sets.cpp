// The loops, built for four instruction sets, the choice between them at run time, and the C
// interface over them.

#include "simcse_fast.h"

#include <cstring>
#include <initializer_list>
#include <numeric>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num() { return 0; }
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SF_HAS_X86_SETS
#if defined(__linux__) && __GNUC__ >= 12
#define SF_HAS_AMX
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#if defined(__GNUC__)
#define SF_INLINE inline __attribute__((always_inline))
#else
#define SF_INLINE inline
#endif
#if defined(__clang__)
#define SF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Places __attribute__((vector_size(16)));
#define SF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif
namespace {

struct Loops {
  void (*normalize)(const float *, int64_t, int64_t, float *, float *, int32_t);
  void (*normalize_backward)(const float *, const float *, const float *, int64_t, int64_t, float,
                             float *, float *, int32_t);
  int64_t (*product_scratch)(const sf_product &);
  void (*multiply)(const sf_product &);
  void (*rows)(const sf_rows &);
  int64_t (*small_scratch)(const sf_small &);
  void (*small)(const sf_small &);
  void (*columns)(const sf_square &);
  void (*columns_end)(const sf_square &);
  void (*square)(const sf_square &);
  void (*potentials)(const sf_potentials &);
  int64_t (*few_scratch)(const sf_few &);
  void (*few)(const sf_few &);
  void (*attention)(const sf_attention &);
  void (*attention_backward)(const sf_attention &);
};

namespace baseline {
#if defined(__FP_FAST_FMAF)
#define SF_FMA(a, b, c) __builtin_fmaf(a, b, c)
#else
#define SF_FMA(a, b, c) ((a) * (b) + (c))  // a call into the C library would take its place
#endif
#define SF_LANES 4
#include "loops.h"
#undef SF_LANES
#undef SF_FMA
}  // namespace baseline

#ifdef SF_HAS_X86_SETS
// Asked for by name: left to contraction, products that two sums share are rounded first.
#define SF_FMA(a, b, c) __builtin_fmaf(a, b, c)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define SF_LANES 8
namespace avx2 {
#include "loops.h"
}  // namespace avx2
#undef SF_LANES
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define SF_LANES 16
namespace avx512 {
#include "loops.h"
}  // namespace avx512
#ifdef SF_HAS_AMX
#pragma GCC target("amx-tile,amx-bf16")
#define SF_AMX_TILES
namespace amx {
#include "loops.h"
}  // namespace amx
#undef SF_AMX_TILES
#endif
#undef SF_LANES
#pragma GCC pop_options
#endif

struct InstructionSet {
  const char *name;
  const Loops *loops;
  bool here;
  bool outruns_blas;  // its products are quicker than torch's
};

#ifdef SF_HAS_X86_SETS
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#ifdef SF_HAS_AMX
// The kernel gives the matrix registers to processes that ask for them.
bool has_amx() {
  constexpr long kAsk = 0x1023, kMatrixRegisters = 18;
  return has_avx512() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kAsk, kMatrixRegisters) == 0;
}
#endif

const InstructionSet *instruction_sets() {
  static const InstructionSet sets[] = {
#ifdef SF_HAS_X86_SETS
#ifdef SF_HAS_AMX
      {"amx", &amx::kLoops, has_amx(), true},
#endif
      {"avx512", &avx512::kLoops, has_avx512(), !__builtin_cpu_is("intel")},
      {"avx2", &avx2::kLoops, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
       false},
#endif
      {"baseline", &baseline::kLoops, true, false},
      {nullptr, nullptr, false, false}};
  return sets;
}

const InstructionSet *best() {
  const InstructionSet *set = instruction_sets();
  while (!set->here) ++set;
  return set;
}

const InstructionSet *&current() {
  static const InstructionSet *set = best();
  return set;
}

bool valid(const sf_product *p) {
  return p && p->left && p->right && p->out && p->rows >= 1 && p->columns >= 1 && p->depth >= 1 &&
         p->out_row >= p->columns && p->threads >= 1;
}

bool valid(const sf_rows *p) {
  return p && p->similarity && p->labels && p->segments && p->segment_count >= 1 && p->rows >= 0 &&
         p->softmax.loss && p->threads >= 1 && p->segments[0].own == SF_OWN_POSITIVE &&
         (p->hard_count == 0 || p->hard);
}

bool valid(const sf_small *p) {
  return p && valid(&p->panel) && p->panel.rows >= 1 && p->panel.segment_count == 1 &&
         p->panel.segments[0].begin == 0 && p->panel.segments[0].width >= 1 &&
         p->panel.segments[0].width <= p->panel.stride && p->query && p->key && p->total &&
         p->width >= 1 && (!p->square || p->panel.rows == p->panel.segments[0].width);
}

bool valid(const sf_square *p) {
  return p && p->similarity && p->rows > 0 && p->columns > 0 && p->stride >= p->columns &&
         p->first_row >= 0 && p->first_row + p->rows <= p->columns && p->positive && p->slope > 0 &&
         p->positive_slope > 0 && p->threads >= 1;
}

bool valid(const sf_potentials *p) {
  return p && p->product && p->rows >= 1 && p->columns >= 1 && p->stride >= p->columns &&
         p->first_row >= 0 && p->first_column >= 0 && p->row_bias && p->column_bias &&
         p->slope > 0 && p->row_sum && p->largest && (p->keep || !p->column_sum) && p->threads >= 1;
}

bool valid(const sf_few *p) {
  return p && p->x && p->rows >= 2 && p->width >= 1 && p->slope > 0 && p->total && p->threads >= 1;
}

bool valid(const sf_attention *p) {
  return p && p->batch >= 0 && p->heads >= 1 && p->length >= 1 &&
         p->length <= SF_ATTENTION_LENGTH && p->depth >= 16 && p->depth <= SF_ATTENTION_DEPTH &&
         p->depth % 16 == 0 && p->query.at && p->key.at && p->value.at && p->out.at &&
         p->threads >= 1;
}

}  // namespace

int32_t sf_abi_version(void) { return SF_ABI_VERSION; }

const char *sf_instruction_set(void) { return current()->name; }

int32_t sf_use_instruction_set(const char *name) {
  for (const InstructionSet *set = instruction_sets(); set->name; ++set) {
    if (std::strcmp(set->name, name) == 0 && set->here) {
      current() = set;
      return SF_OK;
    }
  }
  return SF_BAD_ARGUMENT;
}

int32_t sf_normalize(const float *x, int64_t rows, int64_t width, float *unit, float *inverse_norm,
                     int32_t threads) {
  if (!x || !unit || !inverse_norm || rows < 0 || width < 0 || threads < 1) return SF_BAD_ARGUMENT;
  current()->loops->normalize(x, rows, width, unit, inverse_norm, threads);
  return SF_OK;
}

int32_t sf_normalize_backward(const float *x, const float *inverse_norm, const float *g,
                              int64_t rows, int64_t width, float factor, float *out,
                              float *projection, int32_t threads) {
  if (!x || !g || rows < 0 || width < 0 || threads < 1) return SF_BAD_ARGUMENT;
  current()->loops->normalize_backward(x, inverse_norm, g, rows, width, factor, out, projection,
                                       threads);
  return SF_OK;
}

int32_t sf_outruns_blas(void) { return current()->outruns_blas; }

int64_t sf_product_scratch(const sf_product *p) {
  return valid(p) ? current()->loops->product_scratch(*p) : -1;
}

int32_t sf_multiply(const sf_product *p) {
  if (!valid(p) || !p->scratch) return SF_BAD_ARGUMENT;
  current()->loops->multiply(*p);
  return SF_OK;
}

int32_t sf_infonce_rows(const sf_rows *p) {
  if (!valid(p)) return SF_BAD_ARGUMENT;
  current()->loops->rows(*p);
  return SF_OK;
}

int64_t sf_small_scratch(const sf_small *p) {
  return valid(p) ? current()->loops->small_scratch(*p) : -1;
}

int32_t sf_infonce_small(const sf_small *p) {
  if (!valid(p) || !p->scratch) return SF_BAD_ARGUMENT;
  current()->loops->small(*p);
  return SF_OK;
}

int32_t sf_infonce_columns(const sf_square *p) {
  if (!valid(p)) return SF_BAD_ARGUMENT;
  current()->loops->columns(*p);
  return SF_OK;
}

int32_t sf_infonce_columns_end(const sf_square *p) {
  if (!valid(p)) return SF_BAD_ARGUMENT;
  current()->loops->columns_end(*p);
  return SF_OK;
}

int32_t sf_infonce_square(const sf_square *p) {
  if (!valid(p)) return SF_BAD_ARGUMENT;
  current()->loops->square(*p);
  return SF_OK;
}

int32_t sf_uniformity_potentials(const sf_potentials *p) {
  if (!valid(p)) return SF_BAD_ARGUMENT;
  current()->loops->potentials(*p);
  return SF_OK;
}

int64_t sf_few_scratch(const sf_few *p) {
  return valid(p) ? current()->loops->few_scratch(*p) : -1;
}

int32_t sf_uniformity_few(const sf_few *p) {
  if (!valid(p) || !p->scratch) return SF_BAD_ARGUMENT;
  current()->loops->few(*p);
  return SF_OK;
}

int32_t sf_attention_forward(const sf_attention *p) {
  if (!valid(p)) return SF_BAD_ARGUMENT;
  current()->loops->attention(*p);
  return SF_OK;
}

int32_t sf_attention_backward(const sf_attention *p) {
  const bool whole =
      valid(p) && p->weights && p->query_gradient.at && p->key_gradient.at && p->value_gradient.at;
  if (!whole) return SF_BAD_ARGUMENT;
  current()->loops->attention_backward(*p);
  return SF_OK;
}
