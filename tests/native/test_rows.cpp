// The softmax of rows: losses, what is kept of each row, and gradients in place.

#include "checks.h"

namespace {

struct RowCase {
  int64_t rows, width, segments, hard;
  int32_t own;
  Filter filter;
  float smoothing;
  bool weighted, write;
  float positive_at;  // similarity of the positives: far above, among, or far below the others
};

struct RowProblem {
  RowCase c;
  int64_t columns, stride;
  Guarded<float> similarity, hard, weight;
  Guarded<int64_t> labels, query_ids, key_ids;
  std::vector<sf_segment> segments;
  Ends ends;
  sf_rows panel{};

  explicit RowProblem(const RowCase &c)
      : c(c),
        columns(c.segments * c.width),
        stride(columns + 5),
        similarity(c.rows * stride),
        hard(c.rows * c.hard),
        weight(c.weighted ? c.rows : 0),
        labels(c.rows),
        query_ids(c.filter == kIds ? c.rows : 0),
        key_ids(c.filter == kIds ? columns : 0),
        ends(c.rows) {
    fill();
    describe();
  }

  void fill() {
    for (int64_t i = 0; i < similarity.size(); ++i) similarity[i] = uniform(-0.5f, 0.5f);
    for (int64_t i = 0; i < hard.size(); ++i) hard[i] = uniform(-0.5f, 0.5f);
    for (int64_t i = 0; i < weight.size(); ++i) weight[i] = uniform(0, 2);
    for (int64_t i = 0; i < query_ids.size(); ++i) query_ids[i] = i % 7;
    for (int64_t j = 0; j < key_ids.size(); ++j) key_ids[j] = (5 * j) % 11;
    for (int64_t i = 0; i < c.rows; ++i) {
      labels[i] = i == 0 ? c.width - 1 : (i * 3) % c.width;
      similarity[i * stride + labels[i]] = c.positive_at + uniform(-0.1f, 0.1f);
    }
    for (int64_t k = 0; k < c.segments; ++k) {
      const int32_t own = k == 0 ? static_cast<int32_t>(SF_OWN_POSITIVE) : c.own;
      segments.push_back({k * c.width, c.width, kSlope - 3 * k, kSlope - k, own});
    }
  }

  void describe() {
    panel.similarity = similarity.data();
    panel.rows = c.rows;
    panel.stride = stride;
    panel.labels = labels.data();
    panel.segments = segments.data();
    panel.segment_count = c.segments;
    panel.hard = c.hard ? hard.data() : nullptr;
    panel.hard_count = c.hard;
    panel.hard_slope = 30.1;
    panel.hard_shift = -1.7;
    panel.query_ids = c.filter == kIds ? query_ids.data() : nullptr;
    panel.key_ids = c.filter == kIds ? key_ids.data() : nullptr;
    panel.margin = c.filter == kAll ? kInfinity : 0.05f;
    panel.label_smoothing = c.smoothing;
    panel.weight = c.weighted ? weight.data() : nullptr;
    panel.uniform_weight = 0.25f;
    panel.write_gradient = panel.write_hard_gradient = c.write;
    panel.softmax = ends.view();
    panel.threads = 2;
  }

  // The entries of row i: columns in order, then own hard negatives.
  std::vector<Entry> entries(const std::vector<float> &s, const std::vector<float> &h, int64_t i) {
    const float positive = s[i * stride + labels[i]];
    std::vector<Entry> row;
    for (int64_t j = 0; j < columns; ++j) {
      const sf_segment &segment = segments[j / c.width];
      const float value = s[i * stride + j];
      const bool own = j - segment.begin == labels[i];
      bool out = own && segment.own == SF_OWN_LEFT_OUT;
      out |= !own &&
             (value > positive + panel.margin || (c.filter == kIds && query_ids[i] == key_ids[j]));
      row.push_back({(own ? segment.own_slope : segment.slope) * value, !out});
    }
    for (int64_t k = 0; k < c.hard; ++k) {
      row.push_back({30.1 * h[i * c.hard + k] - 1.7, true});
    }
    return row;
  }
};

void check_rows(const RowCase &c) {
  RowProblem problem(c);
  const std::vector<float> s = problem.similarity.copy(), h = problem.hard.copy();
  expect(sf_infonce_rows(&problem.panel) == SF_OK, "sf_infonce_rows succeeds");
  for (int64_t i = 0; i < c.rows; ++i) {
    const Softmax wanted = softmax(problem.entries(s, h, i), problem.labels[i], c.smoothing);
    expect_ends(problem.ends, i, wanted, c.smoothing);
    const double weight = c.weighted ? problem.weight[i] : 0.25;
    for (int64_t j = 0; j < problem.stride; ++j) {
      const float got = problem.similarity[i * problem.stride + j];
      if (!c.write || j >= problem.columns) {
        expect(got == s[i * problem.stride + j], "what is not asked for is kept", got);
      } else {
        expect_near(got, weight * wanted.gradient[j], 2e-5, weight * slack(c.smoothing), "row");
      }
    }
    for (int64_t k = 0; k < c.hard; ++k) {
      const float got = problem.hard[i * c.hard + k];
      const double asked = weight * wanted.gradient[problem.columns + k];
      expect_near(got, c.write ? asked : h[i * c.hard + k], 2e-5, weight * slack(c.smoothing),
                  "hard negative");
    }
  }
}

// A NaN reaches the loss of its own row and no other; threads do not change a bit.
void check_rows_alone() {
  const RowCase c{67, 509, 1, 0, SF_OWN_KEPT, kMargin, 0, false, true, 0.3f};
  generator.seed(3);
  RowProblem one(c);
  generator.seed(3);
  RowProblem three(c);
  three.panel.threads = 3;
  one.similarity[5 * one.stride + 100] = three.similarity[5 * one.stride + 100] = kNaN;
  sf_infonce_rows(&one.panel);
  sf_infonce_rows(&three.panel);
  for (int64_t i = 0; i < c.rows; ++i) {
    expect(std::isnan(one.ends.loss[i]) == (i == 5), "NaN in the loss of its row", i);
  }
  const size_t bytes = one.similarity.size() * sizeof(float);
  expect(std::memcmp(one.similarity.data(), three.similarity.data(), bytes) == 0, "threads");
}

}  // namespace

void check_all_rows() {
  // Around a vector and around the chunk of 4096 over which float sums run.
  const std::vector<std::pair<int64_t, int64_t>> sizes = {{1, 1},  {3, 2},   {5, 16},
                                                          {7, 17}, {7, 255}, {2, 4097}};
  for (const auto &[rows, width] : sizes) {
    for (const Filter filter : {kAll, kMargin, kIds}) {
      for (const float smoothing : {0.0f, 0.1f}) {
        for (const int32_t own : {SF_OWN_KEPT, SF_OWN_LEFT_OUT}) {
          for (const int64_t segments : {1, 3}) {
            for (const float at : {0.9f, 0.1f, -0.9f}) {
              check_rows({rows, width, segments, 0, own, filter, smoothing, false, true, at});
              check_rows({rows, width, segments, 3, own, filter, smoothing, true, true, at});
            }
            check_rows({rows, width, segments, 3, own, filter, smoothing, true, false, 0.1f});
          }
        }
      }
    }
  }
  check_rows_alone();
}
