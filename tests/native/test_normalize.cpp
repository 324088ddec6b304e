// Unit rows and their gradient, against plain loops in double precision.

#include "checks.h"

namespace {

double length(const float *x, int64_t n) {
  double sum = 0;
  for (int64_t d = 0; d < n; ++d) sum += static_cast<double>(x[d]) * x[d];
  return std::sqrt(sum);
}

// Rows of every kind: ordinary ones, a zero row, one shorter than 1e-12, one with a NaN.
void fill_rows(Guarded<float> &x, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows * width; ++i) x[i] = uniform(-1, 1);
  if (rows < 4 || width == 0) return;
  std::fill_n(x.data() + width, width, 0.0f);
  std::fill_n(x.data() + 2 * width, width, 1e-16f);
  x[3 * width + width / 2] = kNaN;
}

void check_normalize(int64_t rows, int64_t width, int32_t threads) {
  Guarded<float> x(rows * width), unit(rows * width, kNaN), inverse(rows, kNaN);
  fill_rows(x, rows, width);
  const std::vector<float> before = x.copy();
  expect(sf_normalize(x.data(), rows, width, unit.data(), inverse.data(), threads) == SF_OK,
         "sf_normalize succeeds");
  if (!before.empty()) {
    expect(std::memcmp(before.data(), x.data(), before.size() * sizeof(float)) == 0, "x is kept");
  }
  for (int64_t i = 0; i < rows; ++i) {
    const double norm = length(x.data() + i * width, width);
    if (std::isnan(norm)) {
      expect(std::isnan(unit[i * width]), "a NaN row stays NaN");
      continue;
    }
    const double wanted = norm == 0 ? 0 : 1 / std::max(norm, 1e-12);
    expect_near(inverse[i], wanted, 1e-6, 0, "inverse_norm");
    for (int64_t d = 0; d < width; ++d) {
      expect_near(unit[i * width + d], wanted * x[i * width + d], 1e-6, 0, "unit");
    }
  }
}

void check_normalize_backward(int64_t rows, int64_t width, bool normalized, bool in_place) {
  Guarded<float> x(rows * width), unit(rows * width), inverse(rows), g(rows * width);
  Guarded<float> fresh(in_place ? 0 : rows * width, kNaN), projection(rows, kNaN);
  fill_rows(x, rows, width);
  for (int64_t i = 0; i < rows * width; ++i) g[i] = uniform(-1, 1);
  sf_normalize(x.data(), rows, width, unit.data(), inverse.data(), 1);
  const std::vector<float> gradient = g.copy();
  float *out = in_place ? g.data() : fresh.data();
  constexpr float kFactor = 1.75f;
  expect(sf_normalize_backward(x.data(), normalized ? inverse.data() : nullptr, g.data(), rows,
                               width, kFactor, out, projection.data(), 2) == SF_OK,
         "sf_normalize_backward succeeds");
  for (int64_t i = 0; i < rows; ++i) {
    const float *from = x.data() + i * width, *back = gradient.data() + i * width;
    const double norm = length(from, width);
    if (std::isnan(norm)) continue;
    const double scale = !normalized ? 1 : norm == 0 ? 0 : 1 / std::max(norm, 1e-12);
    double along = 0;
    for (int64_t d = 0; d < width; ++d) along += scale * from[d] * back[d];
    expect_near(projection[i], along, 1e-5, 1e-5 * (normalized ? 1 : norm), "projection");
    const bool project = normalized && norm >= 1e-12;
    for (int64_t d = 0; d < width; ++d) {
      const double tangent = back[d] - (project ? along * scale * from[d] : 0);
      expect_near(out[i * width + d], kFactor * scale * tangent, 1e-5, 2e-6 * scale, "gradient");
    }
  }
}

}  // namespace

void check_normalizations() {
  // One lane, around a vector of 16, a prime; 67 * 509 is enough work for the OpenMP team.
  for (const int64_t width : {1, 2, 15, 16, 17, 127, 509}) {
    for (const int64_t rows : {0, 1, 4, 67}) {
      check_normalize(rows, width, 2);
      for (const bool normalized : {false, true}) {
        check_normalize_backward(rows, width, normalized, false);
        check_normalize_backward(rows, width, normalized, true);
      }
    }
  }
}
