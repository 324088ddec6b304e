// Matrix products of all strides and ragged sizes against plain loops in double precision.

#include "checks.h"

namespace {

constexpr double kRounding = 1.0 / (1 << 24);  // of one sum; 384 of them in a row partly cancel

void check_product(int64_t rows, int64_t columns, int64_t depth, bool turned_left,
                   bool turned_right, bool accumulate, int32_t threads) {
  const int64_t gap = 3;  // between rows of the result, where nothing may be written
  Guarded<float> left(rows * depth), right(depth * columns);
  for (int64_t i = 0; i < left.size(); ++i) left[i] = uniform(-1, 1);
  for (int64_t i = 0; i < right.size(); ++i) right[i] = uniform(-1, 1);
  Guarded<float> out(rows * (columns + gap), accumulate ? 2.0f : kNaN);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = columns; j < columns + gap; ++j) out[i * (columns + gap) + j] = 7.0f;

  sf_product product{};
  product.left = left.data();
  product.left_row = turned_left ? 1 : depth;
  product.left_column = turned_left ? rows : 1;
  product.right = right.data();
  product.right_row = turned_right ? 1 : columns;
  product.right_column = turned_right ? depth : 1;
  product.out = out.data();
  product.out_row = columns + gap;
  product.rows = rows;
  product.columns = columns;
  product.depth = depth;
  product.accumulate = accumulate;
  product.threads = threads;
  Guarded<float> scratch(sf_product_scratch(&product), kNaN);
  product.scratch = scratch.data();
  expect(sf_multiply(&product) == SF_OK, "sf_multiply succeeds");

  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      double wanted = accumulate ? 2 : 0, size = 2;
      for (int64_t k = 0; k < depth; ++k) {
        const double term =
            static_cast<double>(left[i * product.left_row + k * product.left_column]) *
            right[k * product.right_row + j * product.right_column];
        wanted += term;
        size += std::abs(term);
      }
      expect_near(out[i * (columns + gap) + j], wanted, 0, 16 * kRounding * size,
                  "element of the product");
    }
    for (int64_t j = columns; j < columns + gap; ++j)
      expect(out[i * (columns + gap) + j] == 7.0f, "nothing is written between the rows");
  }
}

}  // namespace

void check_all_products() {
  // Around tiles of 6 and 14 rows and of 8, 16 and 32 columns, blocks 168 high and 384 deep.
  for (const int64_t rows : {1, 6, 15, 28, 169}) {
    for (const int64_t columns : {1, 8, 33, 64}) {
      for (const int64_t depth : {1, 17, 385}) {
        for (const bool turned_left : {false, true}) {
          for (const bool turned_right : {false, true}) {
            check_product(rows, columns, depth, turned_left, turned_right, false, 1);
            check_product(rows, columns, depth, turned_left, turned_right, true, 2);
          }
        }
      }
    }
  }
  check_product(3, 1100, 4200, false, true, false, 3);  // several slabs both ways
  check_product(3, 5, 9000, true, false, true, 2);
  check_product(3, 70000, 64, false, true, true, 2);
  float x = 0;  // its scratch has a bound, also where a factor is padded most
  for (const int64_t depth : {1, 33, 100000})
    for (const int64_t columns : {1, 33, 1000000}) {
      const sf_product wide = {&x,      depth, 1,       &x,    columns, 1,  &x,
                               columns, 64,    columns, depth, 0,       &x, 4};
      expect(sf_product_scratch(&wide) <= (1 << 23) + 4 * (1 << 18), "the scratch keeps its bound");
    }
  sf_product empty{};
  expect(sf_multiply(&empty) == SF_BAD_ARGUMENT, "an empty product is refused");
  expect(sf_product_scratch(&empty) == -1, "an empty product has no scratch");
}
