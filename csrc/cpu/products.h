// Matrix products, packed as a BLAS packs them: both factors are copied into the order in which a
// tile of the result reads them, so that all strides run at one speed. Included once per
// instruction set (see instruction_sets.cpp).
//
// A header of tiles gives kHigh, kWide, kDeep and the sizes of blocks, pack_left and pack_right for
// kHigh and kWide lines, packed() for the floats that those fill, and tile().

SF_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
SF_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
SF_INLINE int64_t pieces(int64_t size, int64_t piece) { return (size + piece - 1) / piece; }

// Pieces of equal size, a multiple of `step`, as many as there are pieces of `piece`.
SF_INLINE int64_t even(int64_t size, int64_t piece, int64_t step) {
  return pieces(pieces(size, pieces(size, piece)), step) * step;
}

#ifdef SF_AMX_TILES
#include "amx_tiles.h"
#else
#include "vector_tiles.h"
#endif

constexpr int64_t kSlab =
    packed(1 << 17, 32);  // of the right factor packed at a time: 2^22 numbers

// How a product is cut up: a slab of the right factor is packed by all threads, then the threads
// take pieces of block rows by group columns.
struct Cut {
  int64_t columns, depth;  // of a slab
  int64_t block, group;

  explicit Cut(const sf_product &p) {
    const int64_t wide = pieces(p.columns, kWide) * kWide;
    columns = smaller(wide, kSlab / packed(kWide, p.depth) * kWide);
    depth = p.depth;
    if (columns < smaller(wide, 2 * kGroupColumns)) {
      columns = smaller(wide, 2 * kGroupColumns);
      depth = smaller(p.depth, kSlab / packed(columns, kDeep) * kDeep);
    }
    block = kBlockRows;
    group = kGroupColumns;
    while (pieces(p.rows, block) * pieces(columns, group) < p.threads &&
           (block > kHigh || group > kWide)) {
      if (group > kWide && (group >= block || block == kHigh)) {
        group /= 2;
      } else {
        block = pieces(block / 2, kHigh) * kHigh;
      }
    }
    group = even(columns, group, kWide);
    // As many pieces for each thread.
    const int64_t share = p.threads / std::gcd<int64_t>(p.threads, pieces(columns, group));
    block = even(p.rows, pieces(p.rows, pieces(pieces(p.rows, block), share) * share), kHigh);
  }
  int64_t slab() const { return packed(columns, depth); }
  int64_t packed_block() const { return packed(block, smaller(kDeep, depth)); }
};

// The same for a tile of which only rows by columns exist.
SF_INLINE void edge(const float *left, const float *right, int64_t depth, float *out,
                    int64_t stride, bool add, int64_t rows, int64_t columns) {
  float whole[kHigh * kWide];
  tile(left, right, depth, whole, kWide, false, right);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c)
      out[r * stride + c] = whole[r * kWide + c] + (add ? out[r * stride + c] : 0.0f);
}

// A piece of the product: rows [i, i + high) and columns [j, j + wide) of a packed slab.
void piece_of(const sf_product &p, const Cut &cut, int64_t i, int64_t high, int64_t j, int64_t wide,
              int64_t first, int64_t depth, const float *slab, float *left, float *out) {
  for (int64_t k = 0; k < depth; k += kDeep) {
    const int64_t deep = smaller(kDeep, depth - k);
    const bool add = p.accumulate || first + k > 0;
    for (int64_t r = 0; r < high; r += kHigh)
      pack_left(p.left + (i + r) * p.left_row + (first + k) * p.left_column, p.left_row,
                p.left_column, smaller(kHigh, high - r), deep, left + packed(r, deep));
    for (int64_t c = 0; c < wide; c += kWide) {
      const float *right = slab + packed(cut.columns, k) + packed(j + c, deep);
      for (int64_t r = 0; r < high; r += kHigh) {
        float *to = out + (i + r) * p.out_row + j + c;
        // Each tile of a column brings a share of the right factor's next lines nearer.
        const float *ahead = right + packed(kWide, deep) * (kBlockRows + r) / kBlockRows;
        if (high - r >= kHigh && wide - c >= kWide)
          tile(left + packed(r, deep), right, deep, to, p.out_row, add, ahead);
        else
          edge(left + packed(r, deep), right, deep, to, p.out_row, add, smaller(kHigh, high - r),
               smaller(kWide, wide - c));
      }
    }
  }
}

int64_t product_scratch(const sf_product &p) {
  const Cut cut(p);
  return cut.slab() + p.threads * cut.packed_block();
}

// To be called by every thread of a team, of at most p.threads.
void multiply_together(const sf_product &p) {
  const Cut cut(p);
  float *const left = p.scratch + cut.slab() + omp_get_thread_num() * cut.packed_block();
  begin_tiles();
  for (int64_t first = 0; first < p.depth; first += cut.depth) {
    const int64_t depth = smaller(cut.depth, p.depth - first);
    for (int64_t begin = 0; begin < p.columns; begin += cut.columns) {
      const int64_t columns = smaller(cut.columns, p.columns - begin);
#pragma omp for collapse(2) schedule(static)
      for (int64_t k = 0; k < depth; k += kDeep) {
        for (int64_t j = 0; j < columns; j += kWide) {
          const int64_t deep = smaller(kDeep, depth - k);
          pack_right(p.right + (begin + j) * p.right_column + (first + k) * p.right_row,
                     p.right_column, p.right_row, smaller(kWide, columns - j), deep,
                     p.scratch + packed(cut.columns, k) + packed(j, deep));
        }
      }
#pragma omp for collapse(2) schedule(dynamic)
      for (int64_t i = 0; i < p.rows; i += cut.block) {
        for (int64_t j = 0; j < columns; j += cut.group) {
          piece_of(p, cut, i, smaller(cut.block, p.rows - i), j, smaller(cut.group, columns - j),
                   first, depth, p.scratch, left, p.out + begin);
        }
      }
    }
  }
  end_tiles();
}

void multiply(const sf_product &p) {
#pragma omp parallel num_threads(p.threads)
  multiply_together(p);
}
