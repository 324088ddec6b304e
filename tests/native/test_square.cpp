// The symmetric loss: three passes over panels of rows, against both softmaxes written out.

#include "checks.h"

namespace {

struct SquareCase {
  int64_t columns, panel;
  Filter filter;
  float smoothing;
  bool weighted;
  float positive_at;
};

struct SquareProblem : SquareState {
  SquareCase c;
  int64_t stride;
  Guarded<float> similarity, positive, weight;
  Guarded<int64_t> labels, query_ids, key_ids;
  sf_square panel{};

  explicit SquareProblem(const SquareCase &c)
      : SquareState(c.columns),
        c(c),
        stride(c.columns + 3),
        similarity(c.columns * stride),
        positive(c.columns),
        weight(c.weighted ? c.columns : 0),
        labels(c.columns),
        query_ids(c.filter == kIds ? c.columns : 0),
        key_ids(c.filter == kIds ? c.columns : 0) {
    for (int64_t i = 0; i < similarity.size(); ++i) similarity[i] = uniform(-0.5f, 0.5f);
    for (int64_t i = 0; i < weight.size(); ++i) weight[i] = uniform(0, 2);
    for (int64_t i = 0; i < c.columns; ++i) {
      labels[i] = i;
      positive[i] = similarity[i * stride + i] = c.positive_at + uniform(-0.1f, 0.1f);
      column.offset[i] = static_cast<float>(kSlope * positive[i]);
      if (c.filter == kIds) query_ids[i] = key_ids[i] = i % 13;
    }
    panel = {};
    panel.stride = stride;
    panel.columns = c.columns;
    attach(panel);
    panel.positive = positive.data();
    panel.query_ids = c.filter == kIds ? query_ids.data() : nullptr;
    panel.key_ids = c.filter == kIds ? key_ids.data() : nullptr;
    panel.margin = c.filter == kAll ? kInfinity : 0.05f;
    panel.label_smoothing = c.smoothing;
    panel.weight = c.weighted ? weight.data() : nullptr;
    panel.uniform_weight = 0.25f;
    panel.threads = 2;
  }

  // Calls the pass for each panel of rows, as a caller with a bounded workspace does.
  template <typename Pass>
  void each_panel(const Pass &pass) {
    for (int64_t first = 0; first < c.columns; first += c.panel) {
      panel.first_row = first;
      panel.rows = std::min(c.panel, c.columns - first);
      panel.similarity = similarity.data() + first * stride;
      pass();
    }
  }

  void run_rows() {
    const sf_segment all{0, c.columns, kSlope, kSlope, SF_OWN_POSITIVE};
    sf_rows rows{};
    rows.similarity = similarity.data();
    rows.rows = c.columns;
    rows.stride = stride;
    rows.labels = labels.data();
    rows.segments = &all;
    rows.segment_count = 1;
    rows.query_ids = panel.query_ids;
    rows.key_ids = panel.key_ids;
    rows.margin = panel.margin;
    rows.label_smoothing = c.smoothing;
    rows.uniform_weight = 1;
    rows.softmax = row.view();
    rows.threads = 1;
    expect(sf_infonce_rows(&rows) == SF_OK, "sf_infonce_rows succeeds");
  }

  void run() {
    run_rows();
    each_panel([&] { expect(sf_infonce_columns(&panel) == SF_OK, "sf_infonce_columns succeeds"); });
    expect(sf_infonce_columns_end(&panel) == SF_OK, "sf_infonce_columns_end succeeds");
    each_panel([&] { expect(sf_infonce_square(&panel) == SF_OK, "sf_infonce_square succeeds"); });
  }

  // Row `own` of the matrix, or of its transpose.
  Softmax wanted(const std::vector<float> &s, int64_t own, bool transposed) {
    std::vector<Entry> entries;
    for (int64_t j = 0; j < c.columns; ++j) {
      const float value = transposed ? s[j * stride + own] : s[own * stride + j];
      const bool same = c.filter == kIds && query_ids[own] == key_ids[j];
      const bool out = j != own && (value > positive[own] + panel.margin || same);
      entries.push_back({kSlope * value, !out});
    }
    return softmax(entries, own, c.smoothing);
  }
};

void check_square(const SquareCase &c) {
  SquareProblem problem(c);
  const std::vector<float> s = problem.similarity.copy();
  problem.run();
  std::vector<Softmax> by_row, by_column;
  for (int64_t i = 0; i < c.columns; ++i) {
    by_row.push_back(problem.wanted(s, i, false));
    by_column.push_back(problem.wanted(s, i, true));
    expect_ends(problem.row, i, by_row[i], c.smoothing);
    expect_ends(problem.column, i, by_column[i], c.smoothing);
  }
  for (int64_t i = 0; i < c.columns; ++i) {
    const double row_weight = c.weighted ? problem.weight[i] : 0.25;
    for (int64_t j = 0; j < c.columns; ++j) {
      const double column_weight = c.weighted ? problem.weight[j] : 0.25;
      const double wanted =
          row_weight * by_row[i].gradient[j] + column_weight * by_column[j].gradient[i];
      expect_near(problem.similarity[i * problem.stride + j], wanted, 2e-5, slack(c.smoothing),
                  "square");
    }
  }
}

}  // namespace

void check_all_squares() {
  // Panels of one row, of no multiple of a block of 16, of everything; around a strip of 256.
  const std::vector<std::pair<int64_t, int64_t>> sizes = {{1, 1},   {2, 1},    {17, 5},
                                                          {61, 17}, {257, 33}, {300, 300}};
  for (const auto &[columns, panel] : sizes) {
    for (const Filter filter : {kAll, kMargin, kIds}) {
      for (const float smoothing : {0.0f, 0.1f}) {
        check_square({columns, panel, filter, smoothing, false, 0.9f});
        check_square({columns, panel, filter, smoothing, true, 0.1f});
        check_square({columns, panel, filter, smoothing, true, -0.9f});
      }
    }
  }
}
