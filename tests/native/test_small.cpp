// A small batch in one call: products, losses and gradients of unit rows against plain loops.

#include "checks.h"

namespace {

// Away from zero: a short row multiplies the rounding of its gradient by its inverse length.
void fill(Guarded<float> &x) {
  for (int64_t i = 0; i < x.size(); ++i) x[i] = std::copysign(uniform(0.25, 1), uniform(-1, 1));
}

void check_small(int64_t rows, int64_t columns, int64_t width, int64_t stride, bool gradients,
                 bool both, int32_t threads) {
  Guarded<float> query(rows * width), key(columns * width);
  fill(query);
  fill(key);
  if (rows > 2) std::fill_n(query.data() + 2 * width, width, 0.0f);
  Guarded<float> similarity(rows * stride, kNaN), loss(rows, kNaN), total(1, kNaN);
  Guarded<float> query_gradient(rows * width, kNaN), key_gradient(columns * width, kNaN);
  Guarded<float> projection(rows, kNaN);
  Guarded<int64_t> labels(rows);
  for (int64_t i = 0; i < rows; ++i) labels[i] = both ? i : (3 * i) % columns;
  const sf_segment segment{0, columns, kSlope, kSlope, SF_OWN_POSITIVE};

  sf_small batch{};
  batch.panel.similarity = similarity.data();
  batch.panel.rows = rows;
  batch.panel.stride = stride;
  batch.panel.labels = labels.data();
  batch.panel.segments = &segment;
  batch.panel.segment_count = 1;
  batch.panel.margin = kInfinity;
  batch.panel.uniform_weight = 0.5f;
  batch.panel.write_gradient = gradients;
  batch.panel.softmax.loss = loss.data();
  batch.panel.threads = threads;
  SquareState state(rows);
  sf_square square{};
  state.attach(square);
  square.margin = kInfinity;
  square.uniform_weight = 0.5f;
  if (both) {
    batch.square = &square;
    batch.panel.softmax = square.row;
  }
  batch.query = query.data();
  batch.key = key.data();
  batch.width = width;
  batch.factor = 20;
  batch.total = total.data();
  batch.query_gradient = gradients ? query_gradient.data() : nullptr;
  batch.key_gradient = gradients ? key_gradient.data() : nullptr;
  batch.projection = gradients ? projection.data() : nullptr;
  Guarded<float> scratch(sf_small_scratch(&batch), kNaN);
  batch.scratch = scratch.data();
  expect(sf_infonce_small(&batch) == SF_OK, "sf_infonce_small succeeds");

  std::vector<std::vector<double>> q, k;
  for (int64_t i = 0; i < rows; ++i) q.push_back(unit_row(query.data() + i * width, width));
  for (int64_t j = 0; j < columns; ++j) k.push_back(unit_row(key.data() + j * width, width));
  std::vector<double> cosine(rows * columns), g(rows * columns);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t d = 0; d < width; ++d) cosine[i * columns + j] += q[i][d] * k[j][d];
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<Entry> logits;
    for (int64_t j = 0; j < columns; ++j)
      logits.push_back({kSlope * cosine[i * columns + j], true});
    const Softmax wanted = softmax(logits, labels[i], 0);
    expect_near(both ? state.row.loss[i] : loss[i], wanted.loss, 1e-5, 2e-5, "loss");
    sum += 0.5 * wanted.loss;
    for (int64_t j = 0; j < columns; ++j) g[i * columns + j] += 0.5 * wanted.gradient[j];
  }
  for (int64_t j = 0; both && j < columns; ++j) {
    std::vector<Entry> logits;
    for (int64_t i = 0; i < rows; ++i) logits.push_back({kSlope * cosine[i * columns + j], true});
    const Softmax wanted = softmax(logits, j, 0);
    expect_near(state.column.loss[j], wanted.loss, 1e-5, 2e-5, "loss of a column");
    sum += 0.5 * wanted.loss;
    for (int64_t i = 0; i < rows; ++i) g[i * columns + j] += 0.5 * wanted.gradient[i];
  }
  std::vector<double> of_query(rows * width), of_key(columns * width);
  for (int64_t i = 0; i < rows; ++i) {
    double along = 0;
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t d = 0; d < width; ++d) {
        of_query[i * width + d] += g[i * columns + j] * k[j][d];
        of_key[j * width + d] += g[i * columns + j] * q[i][d];
      }
      along += g[i * columns + j] * cosine[i * columns + j];
    }
    if (gradients) expect_near(projection[i], along, 1e-4, 1e-5, "projection");
  }
  expect_near(total[0], sum, 1e-5, 2e-5, "total");
  if (!gradients) return;
  for (int64_t i = 0; i < rows; ++i)
    through_length(query.data() + i * width, q[i], 20, of_query.data() + i * width);
  for (int64_t j = 0; j < columns; ++j)
    through_length(key.data() + j * width, k[j], 20, of_key.data() + j * width);
  for (int64_t i = 0; i < rows * width; ++i)
    expect_near(query_gradient[i], of_query[i], 1e-4, 2e-4, "query gradient");
  for (int64_t j = 0; j < columns * width; ++j)
    expect_near(key_gradient[j], of_key[j], 1e-4, 2e-4, "key gradient");
}

}  // namespace

void check_all_small() {
  for (const int64_t rows : {1, 3, 9, 17}) {
    for (const int64_t columns : {1, 7, 17}) {
      for (const int64_t width : {1, 16, 33, 95}) {
        for (const int64_t stride : {columns, columns + 5}) {
          for (const bool gradients : {true, false}) {
            check_small(rows, columns, width, stride, gradients, false, 1);
            if (rows == columns) check_small(rows, columns, width, stride, gradients, true, 1);
          }
        }
      }
    }
  }
  check_small(300, 300, 33, 301, true, true, 3);  // strips of columns, and several threads
  check_small(150, 260, 33, 261, true, false, 3);
  sf_small empty{};
  expect(sf_infonce_small(&empty) == SF_BAD_ARGUMENT, "an empty batch is refused");
  expect(sf_small_scratch(&empty) == -1, "an empty batch has no scratch");
}
