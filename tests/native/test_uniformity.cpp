// Potentials of pairs of rows, against plain loops in double precision.

#include "checks.h"

namespace {

struct Corner {
  int64_t rows, columns, first_row, first_column;
};

void check_tile(const Corner &c, double offset, bool keep) {
  const int64_t stride = c.columns + 5;
  Guarded<float> product(c.rows * stride), row_bias(c.rows), column_bias(c.columns);
  Guarded<double> row_sum(c.rows, 3.0), column_sum(keep ? c.columns : 0, 4.0);
  const float far = static_cast<float>(offset) / 2;  // logits lie just below the offset
  const double exact = offset == 0 ? 3e-6 : 6e-5;    // as far as fp32 tells them apart there
  for (int64_t i = 0; i < product.size(); ++i) product[i] = uniform(-0.5f, 0.5f);
  for (int64_t i = 0; i < c.rows; ++i) row_bias[i] = uniform(3, 6) - far;
  for (int64_t j = 0; j < c.columns; ++j) column_bias[j] = uniform(3, 6) - far;
  const std::vector<float> before = product.copy();
  float largest = -500.0f;
  const double slope = 4 / kLn2;
  sf_potentials tile{product.data(),
                     c.rows,
                     c.columns,
                     stride,
                     c.first_row,
                     c.first_column,
                     row_bias.data(),
                     column_bias.data(),
                     slope,
                     offset,
                     row_sum.data(),
                     keep ? column_sum.data() : nullptr,
                     &largest,
                     keep,
                     2};
  expect(sf_uniformity_potentials(&tile) == SF_OK, "sf_uniformity_potentials succeeds");
  std::vector<double> columns(c.columns, 4.0);
  double top = -500;
  for (int64_t i = 0; i < c.rows; ++i) {
    double sum = 3;
    for (int64_t j = 0; j < stride; ++j) {
      const int64_t at = i * stride + j;
      if (j >= c.columns) {
        expect(product[at] == before[at], "nothing is written between the rows");
        continue;
      }
      const bool pair = c.first_row + i < c.first_column + j;
      const double logit = slope * before[at] - row_bias[i] - column_bias[j];
      const double e = pair ? std::exp2(logit - offset) : 0;
      if (pair) top = std::max(top, logit);
      if (keep) expect_near(product[at], e, exact, 1e-37, "potential");
      sum += e;
      columns[j] += e;
    }
    expect_near(row_sum[i], sum, exact, 0, "sum of a row");
  }
  for (int64_t j = 0; keep && j < c.columns; ++j)
    expect_near(column_sum[j], columns[j], exact, 0, "sum of a column");
  expect_near(largest, top, 1e-6, 0, "largest logit");
}

void check_few(int64_t rows, int64_t width, bool gradients, int32_t threads) {
  const double slope = 4 / kLn2;
  Guarded<float> x(rows * width), gradient(rows * width, kNaN);
  for (int64_t k = 0; k < x.size(); ++k) x[k] = std::copysign(uniform(0.25, 1), uniform(-1, 1));
  if (rows > 2) std::fill_n(x.data() + 2 * width, width, 0.0f);
  double total = kNaN;
  sf_few few{x.data(), rows, width, slope, nullptr, &total, gradients ? gradient.data() : nullptr,
             threads};
  Guarded<double> scratch((sf_few_scratch(&few) + 1) / 2, kNaN);
  few.scratch = reinterpret_cast<float *>(scratch.data());
  expect(sf_uniformity_few(&few) == SF_OK, "sf_uniformity_few succeeds");

  std::vector<std::vector<double>> unit;
  for (int64_t i = 0; i < rows; ++i) unit.push_back(unit_row(x.data() + i * width, width));
  std::vector<double> g(rows * width);
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < rows; ++j) {
      if (j == i) continue;
      double square = 0;
      for (int64_t d = 0; d < width; ++d) square += std::pow(unit[i][d] - unit[j][d], 2);
      const double e = std::exp2(-slope / 2 * square);
      sum += e / 2;
      for (int64_t d = 0; d < width; ++d)
        g[i * width + d] -= slope * kLn2 * e * (unit[i][d] - unit[j][d]);
    }
  }
  expect_near(total, sum, 3e-6, 0, "sum over pairs");
  for (int64_t i = 0; gradients && i < rows; ++i) {
    through_length(x.data() + i * width, unit[i], 1 / sum, &g[i * width]);
    for (int64_t k = i * width; k < (i + 1) * width; ++k)
      expect_near(gradient[k], g[k], 1e-4, 1e-6, "gradient");
  }
}

}  // namespace

void check_all_uniformity() {
  sf_potentials empty{};
  expect(sf_uniformity_potentials(nullptr) == SF_BAD_ARGUMENT, "no tile is refused");
  expect(sf_uniformity_potentials(&empty) == SF_BAD_ARGUMENT, "an empty tile is refused");
  sf_few none{};
  expect(sf_uniformity_few(&none) == SF_BAD_ARGUMENT, "no rows are refused");
  expect(sf_few_scratch(&none) == -1, "no rows have no scratch");
  for (const bool gradients : {false, true}) {
    for (const int64_t rows : {2, 3, 17, 65})
      for (const int64_t width : {1, 33, 300}) check_few(rows, width, gradients, 1);
    check_few(200, 48, gradients, 3);  // enough for several threads
  }
  for (bool keep : {false, true}) {
    for (double offset : {0.0, -200.0}) {
      check_tile({1, 2, 0, 0}, offset, keep);
      check_tile({1, 1, 5, 5}, offset, keep);        // no pair at all
      check_tile({33, 33, 7, 7}, offset, keep);      // on the diagonal
      check_tile({65, 1031, 0, 0}, offset, keep);    // wider than a strip of columns
      check_tile({300, 517, 40, 40}, offset, keep);  // enough for two threads
      check_tile({17, 47, 3, 700}, offset, keep);    // right of the diagonal
      check_tile({3, 9001, 0, 0}, offset, keep);     // longer than a chunk of a row
    }
  }
}
