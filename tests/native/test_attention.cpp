// Attention of short sequences and its gradients, against plain loops in double precision.

#include "checks.h"

namespace {

struct Shape {
  int64_t batch, heads, length, depth;
};

// Rows of all heads side by side, as a projection leaves them, behind each other with a gap.
struct Heads {
  Shape shape;
  int64_t row;
  Guarded<float> numbers;

  explicit Heads(const Shape &shape, int64_t gap, bool filled)
      : shape(shape),
        row(shape.heads * shape.depth + gap),
        numbers(shape.batch * shape.length * row, kNaN) {
    for (int64_t i = 0; filled && i < numbers.size(); ++i) numbers[i] = uniform(-2, 2);
  }
  sf_heads view() { return {numbers.data(), shape.length * row, shape.depth, row}; }
  float at(int64_t b, int64_t h, int64_t i, int64_t d) {
    return numbers[(b * shape.length + i) * row + h * shape.depth + d];
  }
};

void check_attention(const Shape &s, bool biased, int32_t threads) {
  const int64_t stride = sf_attention_stride(s.length), cells = s.length * stride;
  Heads query(s, 3, true), key(s, 0, true), value(s, 5, true), upstream(s, 1, true);
  Heads out(s, 2, false), of_query(s, 0, false), of_key(s, 7, false), of_value(s, 0, false);
  Guarded<float> weights(s.batch * s.heads * cells, kNaN), bias(s.batch * cells);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t j = 0; j < s.length; ++j) {
      for (int64_t i = 0; i < s.length; ++i) {
        const bool hidden = i != j && uniform(0, 1) < 0.3f;
        bias[b * cells + j * stride + i] = hidden ? -kInfinity : uniform(-1, 1);
      }
    }
  }
  sf_attention p{};
  p.batch = s.batch;
  p.heads = s.heads;
  p.length = s.length;
  p.depth = s.depth;
  p.scale = 0.4f;
  p.bias = biased ? bias.data() : nullptr;
  p.query = query.view();
  p.key = key.view();
  p.value = value.view();
  p.out = out.view();
  p.threads = threads;
  expect(sf_attention_forward(&p) == SF_OK, "weights need not be kept");
  const std::vector<float> first = out.numbers.copy();
  p.weights = weights.data();
  expect(sf_attention_forward(&p) == SF_OK, "sf_attention_forward succeeds");
  p.out = upstream.view();
  p.query_gradient = of_query.view();
  p.key_gradient = of_key.view();
  p.value_gradient = of_value.view();
  expect(sf_attention_backward(&p) == SF_OK, "sf_attention_backward succeeds");

  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t h = 0; h < s.heads; ++h) {
      std::vector<double> dq(s.length * s.depth), dk(dq), dv(dq);
      for (int64_t i = 0; i < s.length; ++i) {
        std::vector<Entry> logits;
        for (int64_t j = 0; j < s.length; ++j) {
          double dot = 0;
          for (int64_t d = 0; d < s.depth; ++d)
            dot += static_cast<double>(query.at(b, h, i, d)) * key.at(b, h, j, d);
          const float added = biased ? bias[b * cells + j * stride + i] : 0.0f;
          logits.push_back({p.scale * dot / kLn2 + added, added > -kInfinity});
        }
        const Softmax wanted = softmax(logits, i, 0);
        std::vector<double> weight, slope;
        double along = 0;
        for (int64_t j = 0; j < s.length; ++j) {
          const double e = logits[j].remains ? std::exp2(logits[j].logit - wanted.offset) : 0.0;
          weight.push_back(e * wanted.inverse_sum);
          slope.push_back(0);
          for (int64_t d = 0; d < s.depth; ++d) {
            slope[j] += static_cast<double>(upstream.at(b, h, i, d)) * value.at(b, h, j, d);
            dv[j * s.depth + d] += weight[j] * upstream.at(b, h, i, d);
          }
          along += weight[j] * slope[j];
          expect_near(weights[(b * s.heads + h) * cells + j * stride + i], weight[j], 2e-5, 1e-7,
                      "weight");
        }
        for (int64_t d = 0; d < s.depth; ++d) {
          double sum = 0;
          for (int64_t j = 0; j < s.length; ++j) {
            const double g = p.scale * weight[j] * (slope[j] - along);
            sum += weight[j] * value.at(b, h, j, d);
            dq[i * s.depth + d] += g * key.at(b, h, j, d);
            dk[j * s.depth + d] += g * query.at(b, h, i, d);
          }
          expect_near(out.at(b, h, i, d), sum, 2e-5, 1e-5, "output");
          expect(first[(b * s.length + i) * out.row + h * s.depth + d] == out.at(b, h, i, d),
                 "the same without weights");
        }
      }
      for (int64_t i = 0; i < s.length; ++i) {
        for (int64_t d = 0; d < s.depth; ++d) {
          expect_near(of_query.at(b, h, i, d), dq[i * s.depth + d], 1e-4, 1e-4, "of query");
          expect_near(of_key.at(b, h, i, d), dk[i * s.depth + d], 1e-4, 1e-4, "of key");
          expect_near(of_value.at(b, h, i, d), dv[i * s.depth + d], 1e-4, 1e-4, "of value");
        }
      }
    }
  }
}

}  // namespace

void check_all_attention() {
  // Around tiles of 8, 4, 2 and 1 rows, and vectors of 4, 8 and 16.
  for (const int64_t length : {1, 2, 3, 5, 8, 9, 14, 16, 17, 31, 33}) {
    for (const int64_t depth : {16, 32, 48}) {
      check_attention({2, 3, length, depth}, false, 1);
      check_attention({1, 2, length, depth}, true, 2);
    }
  }
  check_attention({1, 1, SF_ATTENTION_LENGTH, SF_ATTENTION_DEPTH}, true, 1);
  float x[16] = {};
  const sf_heads one{x, 16, 16, 16};
  sf_attention p{};
  p.batch = p.heads = p.length = p.threads = 1;
  p.depth = 16;
  p.query = p.key = p.value = p.out = one;
  expect(sf_attention_forward(&p) == SF_OK, "one token is enough");
  expect(sf_attention_backward(&p) == SF_BAD_ARGUMENT, "gradients need weights and room");
  p.depth = 24;
  expect(sf_attention_forward(&p) == SF_BAD_ARGUMENT, "heads of no whole vectors are refused");
  p.depth = 16;
  p.length = SF_ATTENTION_LENGTH + 1;
  expect(sf_attention_forward(&p) == SF_BAD_ARGUMENT, "long sequences are refused");
  expect(sf_attention_forward(nullptr) == SF_BAD_ARGUMENT, "no problem is refused");
}
