// All loops. Included once per instruction set (see instruction_sets.cpp), each time inside another
// namespace and under another target, so there is no include guard and nothing global here.
#include "vectors.h"

#include "normalize_loops.h"
#include "products.h"

#include "infonce_loops.h"

#include "small_loops.h"

#include "uniformity_loops.h"

#include "small_uniformity_loops.h"

#include "attention_loops.h"

const Loops kLoops = {normalize,
                      normalize_backward,
                      product_scratch,
                      multiply,
                      rows,
                      small_scratch,
                      small,
                      columns,
                      columns_end,
                      square,
                      potentials,
                      few_scratch,
                      few,
                      attention,
                      attention_backward};
