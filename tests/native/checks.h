// What the tests of the C interface share: expectations, guarded buffers, and a softmax written out
// in double precision.
#ifndef SIMCSE_FAST_TESTS_CHECKS_H
#define SIMCSE_FAST_TESTS_CHECKS_H

#include "simcse_fast.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kLn2 = 0.693147180559945309;
constexpr double kSlope = 1 / (0.05 * kLn2);  // temperature 0.05; rounds when made a float

inline int checks = 0, failures = 0;
inline std::string context;

inline void expect(bool ok, const char *what, double got = 0, double wanted = 0) {
  ++checks;
  if (ok) return;
  if (++failures <= 20) {
    std::printf("FAILED %s: %s, got %.9g, wanted %.9g\n", context.c_str(), what, got, wanted);
  }
}

inline void expect_near(double got, double wanted, double relative, double absolute,
                        const char *what) {
  const bool ok = std::abs(got - wanted) <= relative * std::abs(wanted) + absolute;
  expect(ok, what, got, wanted);
}

// A buffer between zones that nobody may write to. AddressSanitizer has its own zones.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t size, T fill = T()) : values_(size + 2 * kZone, fill) {
    values_.reserve(1);  // not null, also when empty
    std::memset(values_.data(), kMark, kZone * sizeof(T));
    std::memset(values_.data() + kZone + size, kMark, kZone * sizeof(T));
  }
  ~Guarded() {
    const auto *low = reinterpret_cast<const unsigned char *>(values_.data());
    const auto *high = reinterpret_cast<const unsigned char *>(values_.data() + size() + kZone);
    bool intact = true;
    for (size_t i = 0; i < kZone * sizeof(T); ++i) intact &= low[i] == kMark && high[i] == kMark;
    expect(intact, "nothing is written outside the buffer");
  }
  Guarded(const Guarded &) = delete;
  Guarded &operator=(const Guarded &) = delete;

  T *data() { return values_.data() + kZone; }
  T &operator[](int64_t i) { return values_[kZone + i]; }
  int64_t size() const { return static_cast<int64_t>(values_.size()) - 2 * kZone; }
  std::vector<T> copy() { return std::vector<T>(data(), data() + size()); }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr int64_t kZone = 0;
#else
  static constexpr int64_t kZone = 61;  // odd, so that no buffer begins at a vector's boundary
#endif
  static constexpr unsigned char kMark = 0xA5;
  std::vector<T> values_;
};

inline std::mt19937 generator(7);

inline float uniform(float low, float high) {
  return std::uniform_real_distribution<float>(low, high)(generator);
}

// A row divided by its length, in double precision.
inline std::vector<double> unit_row(const float *x, int64_t width) {
  double square = 0;
  for (int64_t d = 0; d < width; ++d) square += static_cast<double>(x[d]) * x[d];
  std::vector<double> unit(width);
  for (int64_t d = 0; d < width; ++d) unit[d] = square > 0 ? x[d] / std::sqrt(square) : 0;
  return unit;
}

// Gradient g of unit row u of x -> gradient of x, times factor.
inline void through_length(const float *x, const std::vector<double> &u, double factor, double *g) {
  const int64_t width = u.size();
  double square = 0, along = 0;
  for (int64_t d = 0; d < width; ++d) square += static_cast<double>(x[d]) * x[d];
  for (int64_t d = 0; d < width; ++d) along += u[d] * g[d];
  const double scale = square > 0 ? factor / std::sqrt(square) : 0;
  for (int64_t d = 0; d < width; ++d) g[d] = scale * (g[d] - along * u[d]);
}

// What may leave columns out of a softmax; kIds stands for ids and margin.
enum Filter { kAll, kMargin, kIds };

// Logits are in units of log2, as in the library.
struct Entry {
  double logit;
  bool remains;
};

struct Softmax {
  double loss, offset, inverse_sum, miss, smoothing;
  std::vector<double> gradient;  // of the entries, for weight 1
};

inline Softmax softmax(const std::vector<Entry> &entries, size_t positive, double epsilon) {
  Softmax s{};
  s.offset = -kInfinity;
  for (const Entry &e : entries) s.offset = e.remains ? std::max(s.offset, e.logit) : s.offset;
  double sum = 0, negatives = 0, logits = 0, count = 0;
  for (size_t j = 0; j < entries.size(); ++j) {
    if (!entries[j].remains) continue;
    const double e = std::exp2(entries[j].logit - s.offset);
    sum += e;
    negatives += j == positive ? 0 : e;
    logits += entries[j].logit;
    ++count;
  }
  const double own = entries[positive].logit;
  const double e = std::exp2(own - s.offset);
  s.loss = e > negatives ? std::log1p(negatives / e) : std::log(sum) - kLn2 * (own - s.offset);
  s.loss += epsilon * kLn2 * (own - logits / count);
  s.inverse_sum = 1 / sum;
  s.miss = negatives / sum;
  s.smoothing = epsilon / count;
  for (size_t j = 0; j < entries.size(); ++j) {
    const double p = std::exp2(entries[j].logit - s.offset) / sum;
    const double kept = j == positive ? epsilon - s.miss : p;
    s.gradient.push_back(entries[j].remains ? kept - s.smoothing : 0);
  }
  return s;
}

// What the library writes for each row or column.
struct Ends {
  Guarded<float> loss, offset, inverse_sum, miss, smoothing;
  explicit Ends(int64_t n)
      : loss(n, kNaN), offset(n, kNaN), inverse_sum(n, kNaN), miss(n, kNaN), smoothing(n, kNaN) {}
  sf_softmax view() {
    return {loss.data(), offset.data(), inverse_sum.data(), miss.data(), smoothing.data()};
  }
};

// What a symmetric loss keeps of its rows and columns.
struct SquareState {
  Ends row, column;
  Guarded<double> column_sum, logit_sum;
  Guarded<int64_t> column_count;
  explicit SquareState(int64_t n)
      : row(n), column(n), column_sum(n), logit_sum(n), column_count(n) {}
  void attach(sf_square &panel) {
    panel.slope = panel.positive_slope = kSlope;
    panel.row = row.view();
    panel.column = column.view();
    panel.column_sum = column_sum.data();
    panel.logit_sum = logit_sum.data();
    panel.column_count = column_count.data();
  }
};

// With label smoothing small values are differences of larger ones.
inline double slack(double epsilon) { return epsilon > 0 ? 4e-7 : 1e-12; }

inline void expect_ends(Ends &ends, int64_t i, const Softmax &wanted, double epsilon) {
  const double absolute = slack(epsilon) * (epsilon > 0 ? 20 : 1);
  expect_near(ends.loss[i], wanted.loss, 1e-5, absolute, "loss");
  expect_near(ends.offset[i], wanted.offset, 1e-6, 1e-6, "offset");
  expect_near(ends.inverse_sum[i], wanted.inverse_sum, 1e-5, 0, "inverse_sum");
  expect_near(ends.miss[i], wanted.miss, 1e-5, 1e-30, "miss");
  expect_near(ends.smoothing[i], wanted.smoothing, 1e-6, 0, "smoothing");
}

// One per source file; called once per instruction set.
void check_copies();
void check_normalizations();
void check_all_rows();
void check_all_products();
void check_all_small();
void check_all_squares();
void check_all_attention();
void check_all_uniformity();

#endif
