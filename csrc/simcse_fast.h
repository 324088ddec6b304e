/* The whole C interface of the native library.
 *
 * Matrices are row-major float32; sizes and strides count elements; threads >= 1 is the size of the
 * OpenMP team. Functions allocate nothing that outlives the call, never throw, and return a status.
 *
 * Logits are kept in units of log2: a column's logit is slope * similarity, slope = log2(e) *
 * (1 / temperature + hardness) > 0, so that exp2 replaces exp. Slopes are double: rounded to float
 * they would move the temperature, which shows where logits lie hundreds apart.
 */
#ifndef SIMCSE_FAST_H
#define SIMCSE_FAST_H

#include <stdint.h>

#define SF_ABI_VERSION 12

#if defined(__GNUC__)
#define SF_API __attribute__((visibility("default")))
#else
#define SF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { SF_OK = 0, SF_BAD_ARGUMENT = 1, SF_FAILED = 2 } sf_status;

SF_API int32_t sf_abi_version(void);

/* The instruction set in use: "amx" (AVX-512 with matrix registers), "avx512", "avx2" or
 * "baseline"; the best of this processor at first. */
SF_API const char *sf_instruction_set(void);
/* Use another one (for tests). SF_BAD_ARGUMENT if the processor lacks it. */
SF_API int32_t sf_use_instruction_set(const char *name);

/* to[i] = from[i] for i < bytes, by writes that leave what is cached in the caches; `to` is a
 * multiple of 64. For what is not read soon. */
SF_API int32_t sf_copy_past_caches(const void *from, int64_t bytes, void *to, int32_t threads);

/* unit[i] = x[i] * inverse_norm[i], inverse_norm[i] = 1 / max(|x[i]|, 1e-12), 0 for a zero row. */
SF_API int32_t sf_normalize(const float *x, int64_t rows, int64_t width, float *unit,
                            float *inverse_norm, int32_t threads);

/* out[i] = factor * inverse_norm[i] * (g[i] - u[i] <u[i], g[i]>), projection[i] = <u[i], g[i]>,
 * where u[i] = x[i] * inverse_norm[i]. A NULL inverse_norm means rows used as they are: out =
 * factor * g, projection = <x, g>. out may be g; a NULL out or projection is not written. */
SF_API int32_t sf_normalize_backward(const float *x, const float *inverse_norm, const float *g,
                                     int64_t rows, int64_t width, float factor, float *out,
                                     float *projection, int32_t threads);

typedef struct {
  const float *left; /* element (i, k) = left[i * left_row + k * left_column] */
  int64_t left_row, left_column;
  const float *right; /* element (k, j) = right[k * right_row + j * right_column] */
  int64_t right_row, right_column;
  float *out; /* element (i, j) = out[i * out_row + j] */
  int64_t out_row, rows, columns, depth;
  int32_t accumulate; /* add to out instead of writing it */
  float *scratch;     /* sf_product_scratch numbers */
  int32_t threads;
} sf_product;

/* out (rows, columns) = or += left (rows, depth) right (depth, columns). */
SF_API int32_t sf_multiply(const sf_product *product);
/* Numbers of scratch that sf_multiply needs, at most 2^23 and 2^18 a thread; -1: bad argument.
 * Tiles read faster where it begins at a multiple of 64 bytes. */
SF_API int64_t sf_product_scratch(const sf_product *product);
/* Whether sf_multiply is the quicker choice here: with matrix registers, which MKL does not use for
 * float32, and with AVX-512 on processors that are not Intel's, where MKL keeps to 256 bits. */
SF_API int32_t sf_outruns_blas(void);

/* Columns [begin, begin + width) of a panel; column begin + labels[i] is row i's own. */
typedef enum { SF_OWN_POSITIVE = 0, SF_OWN_KEPT = 1, SF_OWN_LEFT_OUT = 2 } sf_own;
typedef struct {
  int64_t begin, width;
  double slope;     /* of every column but the row's own */
  double own_slope; /* of the row's own column */
  int32_t own;      /* sf_own; exactly one segment, the first, holds the positive */
} sf_segment;

/* What remains of a row's (or column's) softmax: all that its gradient needs. */
typedef struct {
  float *loss;        /* cross-entropy, label smoothing included, not weighted */
  float *offset;      /* the largest logit */
  float *inverse_sum; /* 1 / sum of exp2(logit - offset), the positive included */
  float *miss;        /* 1 - p(positive), without cancellation */
  float *smoothing;   /* label_smoothing / number of remaining logits */
} sf_softmax;

typedef struct {
  float *similarity; /* (rows, stride); overwritten with the gradient if write_gradient */
  int64_t rows, stride;
  const int64_t *labels; /* (rows) */
  const sf_segment *segments;
  int64_t segment_count;
  float *hard; /* (rows, hard_count) similarities with own hard negatives, or NULL; becomes the
                  gradient if write_hard_gradient */
  int64_t hard_count;
  double hard_slope, hard_shift; /* logit = hard_slope * similarity + hard_shift */
  const int64_t *query_ids;      /* (rows) or NULL */
  const int64_t *key_ids;        /* (columns) or NULL */
  float margin;                  /* columns above similarity(positive) + margin are left out; inf */
  float label_smoothing;
  const float *weight; /* (rows) or NULL: every row has weight uniform_weight */
  float uniform_weight;
  int32_t write_gradient, write_hard_gradient;
  sf_softmax softmax; /* (rows) each; NULL members but loss are not written */
  int32_t threads;
} sf_rows;

/* One direction: similarities of a panel of rows -> losses, and weight * dloss/dlogit in place. */
SF_API int32_t sf_infonce_rows(const sf_rows *panel);

typedef struct {
  float *similarity;    /* (rows, stride): rows [first_row, first_row + rows) of a square */
  int64_t rows, stride; /* matrix of `columns` rows and columns, positives on the diagonal */
  int64_t first_row, columns;
  double slope, positive_slope;
  const float *positive;    /* (columns) similarity of each pair */
  const int64_t *query_ids; /* (columns) or NULL */
  const int64_t *key_ids;   /* (columns) or NULL */
  float margin;
  float label_smoothing;
  const float *weight; /* (columns) or NULL */
  float uniform_weight;
  sf_softmax row, column; /* (columns) each */
  double *column_sum;     /* (columns) running sums of the negatives */
  double *logit_sum;      /* (columns) running sums of the negatives' logits */
  int64_t *column_count;  /* (columns) running numbers of remaining negatives */
  int32_t threads;
} sf_square;

/* Symmetric loss, first pass: update column_sum, logit_sum, column_count and column.offset with
 * this panel's rows; the panel with first_row 0 comes first and initialises them. */
SF_API int32_t sf_infonce_columns(const sf_square *panel);
/* Between the passes: column_sum, logit_sum and column_count -> column.{loss, inverse_sum, ...}. */
SF_API int32_t sf_infonce_columns_end(const sf_square *panel);
/* Second pass: similarities -> weight * (dloss_row + dloss_column) / dlogit, in place. */
SF_API int32_t sf_infonce_square(const sf_square *panel);

typedef struct {
  sf_rows panel;            /* one segment, at 0; similarity is scratch */
  const sf_square *square;  /* NULL, or both directions: the state of the columns, and the terms of
                               the gradient; what it says of similarities and positives is not read,
                               and the panel's softmax is the square's row */
  const float *query, *key; /* (rows, width), (columns, width) */
  int64_t width;
  float factor;          /* multiplies the gradients */
  float *scratch;        /* sf_small_scratch numbers */
  float *total;          /* sum of weight * loss, of both directions */
  float *query_gradient; /* (rows, width), or NULL */
  float *key_gradient;   /* (columns, width), or NULL */
  float *projection;     /* (rows) <unit query, its gradient without factor>, or NULL */
} sf_small;

/* A small batch in one call, normalisation and products included: losses and gradients. */
SF_API int32_t sf_infonce_small(const sf_small *batch);
/* Numbers of scratch that it needs; -1: bad argument. */
SF_API int64_t sf_small_scratch(const sf_small *batch);

/* A tile of all pairs of rows: rows [first_row, first_row + rows) with rows [first_column,
 * first_column + columns) of the same matrix. logit = slope * product - row_bias - column_bias. */
typedef struct {
  float *product; /* (rows, columns), stride apart; overwritten, if `keep` with the potentials */
  int64_t rows, columns, stride, first_row, first_column;
  const float *row_bias, *column_bias; /* (rows), (columns) */
  double slope, offset;
  double *row_sum;    /* (rows) sums of exp2(logit - offset) right of the diagonal, added to */
  double *column_sum; /* (columns) the same, or NULL; needs `keep` */
  float *largest;     /* the largest logit so far */
  int32_t keep;       /* leave exp2(logit - offset), 0 on and left of the diagonal */
  int32_t threads;
} sf_potentials;

/* Products of centred rows -> potentials and their sums, each pair once. */
SF_API int32_t sf_uniformity_potentials(const sf_potentials *tile);

/* logit = slope * <c_i, c_j> - slope / 2 * (|c_i|^2 + |c_j|^2), c the unit rows less their mean. */
typedef struct {
  const float *x; /* (rows, width) */
  int64_t rows, width;
  double slope;    /* such that no logit lies below -126 */
  float *scratch;  /* sf_few_scratch numbers, from a multiple of 8 bytes */
  double *total;   /* sum of exp2(logit) over all pairs */
  float *gradient; /* (rows, width) of log(total), or NULL */
  int32_t threads;
} sf_few;

/* A few rows in one call, normalisation and products included: potentials and gradient. */
SF_API int32_t sf_uniformity_few(const sf_few *rows);
/* Numbers of scratch that they need; -1: bad argument. */
SF_API int64_t sf_few_scratch(const sf_few *rows);

/* Longest sequences, and most numbers of a head, that sf_attention takes. */
#define SF_ATTENTION_LENGTH 128
#define SF_ATTENTION_DEPTH 128

/* Element (b, h, i, d) = at[b * batch + h * head + i * row + d]. */
typedef struct {
  float *at;
  int64_t batch, head, row;
} sf_heads;

typedef struct {
  int64_t batch, heads, length, depth; /* depth a multiple of 16 */
  float scale;                         /* logit = scale * <query, key> + bias */
  const float *bias; /* (batch, length of keys, stride) in units of log2, or NULL; a row's stride -
                        length last numbers are not infinite */
  float *weights;    /* (batch, heads, length of keys, stride) softmax, or NULL: not kept */
  sf_heads query, key, value;
  sf_heads out; /* backward: gradient of the output, read */
  sf_heads query_gradient, key_gradient, value_gradient; /* backward only */
  int32_t threads;
} sf_attention;

/* Numbers from one key's weights to the next one's: the length, to a whole vector of the widest. */
static inline int64_t sf_attention_stride(int64_t length) { return (length + 15) / 16 * 16; }

/* Self-attention of short sequences: out = softmax over keys(logits) value. Writes weights. */
SF_API int32_t sf_attention_forward(const sf_attention *problem);
/* Gradient of the output -> gradients of query, key and value. Reads weights. */
SF_API int32_t sf_attention_backward(const sf_attention *problem);

/* --- On a device of compute capability 9.0, where the library was built with nvcc.
 *
 * Pointers are the device's, and multiples of 16 where they are matrices; launches are put into
 * `stream` and not waited for. SF_FAILED: the device or its driver refused one. */

/* What was refused last in this thread. */
SF_API const char *sf_cuda_refusal(void);

typedef struct {
  const void *query; /* (rows, depth) bf16 unit rows of a panel; depth is a multiple of 64 */
  const void *key;   /* (columns, depth) */
  int64_t rows, columns, depth;
  void *panel;           /* (rows, width) bf16 out; what is beyond the columns becomes 0 */
  int64_t stride;        /* numbers from row to row of the panel, a multiple of 8 */
  int64_t width;         /* >= columns; without a panel the columns */
  const double *numbers; /* (2) scale and offset: logit = (scale + hardness) log2(e) cos - offset */
  double hardness, own_hardness; /* of negatives, and of own columns that are kept */
  int32_t own;                   /* sf_own */
  const int64_t *labels;         /* (rows) each row's own column; outside the columns: none */
  const int64_t *query_ids;      /* (rows) or NULL: columns of the same id are left out */
  const int64_t *key_ids;        /* (columns) or NULL */
  const float *positive;         /* (rows) similarity with the positive, or NULL: no margin */
  const float *opposite;         /* (columns) the same of the columns, where they are summed too */
  float margin;                  /* columns above similarity(positive) + margin are left out */
  const int32_t *flag;           /* or NULL: nothing is done unless it is `expected` */
  int32_t expected;
  int32_t lead; /* of a block's first consumer before its second, in steps of 32 numbers */
  int32_t device;
  void *stream;
} sf_infonce_products;

typedef struct {
  float *row_sums;    /* (tiles of 256 columns of the width, rows) out */
  float *column_sums; /* (tiles of 64 rows, columns) out, or NULL; then there is no panel */
} sf_infonce_sums;

/* Sums of exp2(logit) of each row, and of each column if wanted, over tiles; the panel, if there is
 * one, gets the exponentials, 0 at the positive. */
SF_API int32_t sf_infonce_sums_cuda(const sf_infonce_products *in, const sf_infonce_sums *out);

typedef struct {
  const float *row_factor;    /* (rows) */
  const float *column_factor; /* (columns) or NULL */
  const float *own;           /* (rows) gradient at the positive */
} sf_infonce_gradients;

/* The panel gets gradients: exp2(logit) * (row's factor + column's), at the positive `own`. */
SF_API int32_t sf_infonce_gradients_cuda(const sf_infonce_products *in,
                                         const sf_infonce_gradients *state);

#ifdef __cplusplus
}
#endif
#endif
