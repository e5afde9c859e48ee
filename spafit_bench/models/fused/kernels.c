/* The operations of a block between its matrix products, in bf16 on a CPU. Each passes over memory once.
 *
 * native.py calls these functions and describes them. `Kernels` in kernels.py does the same with
 * PyTorch's operations. The functions compute in fp32, 16 numbers at a time. The seed, the row and the
 * column decide whether an element is dropped; the number of threads does not matter. The processor
 * must have AVX-512 with bf16. setup.py defines SOURCE, which native.py compares with this file.
 */
#include <immintrin.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;
typedef int64_t i64;

enum { LANES = 16, AT_ONCE = 64, BITS = 2 * AT_ONCE, ALL = 1 << 15 };

/* In `for EACH(i, count)`, i is 0, 16, 32, ... The mask `rest(count - i)` omits what is past the end. */
#define EACH(i, count) (i64 i = 0; i < (count); i += LANES)
#define PARALLEL _Pragma("omp parallel for schedule(static) num_threads(threads)")

/* The number of threads to use: few for little work, because waking a thread costs time. */
static int worthwhile(i64 elements, i64 threads) { return elements > 16384 ? (int)threads : 1; }

static inline __mmask16 rest(i64 count) { return count < LANES ? (1u << count) - 1 : 0xffff; }

static inline __m512 load(const float *x, __mmask16 m) { return _mm512_maskz_loadu_ps(m, x); }

static inline void store(float *x, __mmask16 m, __m512 v) { _mm512_mask_storeu_ps(x, m, v); }

static inline void accumulate(float *sum, __mmask16 m, __m512 x) {
  store(sum, m, _mm512_add_ps(load(sum, m), x));
}

/* bf16 is the upper half of fp32. `up` converts to fp32, `down` rounds to bf16. */
static inline __m512 up(const bf16 *x, __mmask16 m) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void down(bf16 *x, __mmask16 m, __m512 v) {
  _mm256_mask_storeu_epi16(x, m, (__m256i)_mm512_cvtneps_pbh(v));
}

/* `bias` is NULL if there is nothing to add. */
static inline __m512 plus(const bf16 *x, const float *bias, i64 i, __mmask16 m) {
  return bias ? _mm512_add_ps(up(x + i, m), load(bias + i, m)) : up(x + i, m);
}

static inline void copy(bf16 *to, const bf16 *from, const float *bias, i64 count, float scale) {
  if (scale == 1.0f && !bias) {
    memcpy(to, from, sizeof(bf16) * count);
    return;
  }
  for EACH(i, count) {
    __mmask16 m = rest(count - i);
    down(to + i, m, _mm512_mul_ps(plus(from, bias, i, m), _mm512_set1_ps(scale)));
  }
}

/* `sums` has one row for each thread. Add all rows to the first. */
static inline void reduce(float *sums, i64 count, i64 threads) {
  for (i64 thread = 1; thread < threads; thread++)
    for EACH(i, count) {
      __mmask16 m = rest(count - i);
      accumulate(sums + i, m, load(sums + thread * count + i, m));
    }
}

static inline void clear(bf16 *x, i64 count) { memset(x, 0, sizeof(bf16) * count); }

/* e^x for x <= 0; below -110 it is e^-110. e^x = 2^n e^r with |r| <= ln(2) / 2, and e^r is Taylor's
 * series up to r^6. The error is about 2 units in the last place. A NaN stays a NaN. */
static inline __m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-110.0f), x); /* returns the second operand if one is a NaN */
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
  const float terms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (int i = 0; i < 6; i++) sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(terms[i]));
  return _mm512_scalef_ps(sum, n);
}

/* x Phi(x) with Phi the normal distribution (Hendrycks & Gimpel 2016, arXiv:1606.08415), and its
 * slope. Phi(-|x|) is computed by Abramowitz & Stegun 1964, 7.1.26, with an error of at most 8e-8. */
static inline __m512 gelu_of(__m512 x, __m512 *slope) {
  const float terms[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  const __m512 one = _mm512_set1_ps(1.0f);
  __m512 half_square = _mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f));
  __m512 power = exponential(half_square);
  __m512 t = _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.3275911f * 0.70710678f), one);
  t = _mm512_div_ps(one, t);
  __m512 sum = _mm512_set1_ps(1.061405429f);
  for (int i = 0; i < 4; i++) sum = _mm512_fmadd_ps(sum, t, _mm512_set1_ps(terms[i]));
  __m512 tail = _mm512_mul_ps(_mm512_mul_ps(sum, t), _mm512_mul_ps(power, _mm512_set1_ps(0.5f)));
  __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
  __m512 share = _mm512_mask_sub_ps(tail, above, one, tail);
  *slope = _mm512_fmadd_ps(_mm512_mul_ps(x, power), _mm512_set1_ps(0.39894228f), share);
  return _mm512_mul_ps(x, share);
}

const char *built_from(void) { return SOURCE; }

static i64 padded(i64 count) { return (count + BITS - 1) / BITS * BITS; }

/* Write random 16-bit numbers: `count`, rounded up to a multiple of AT_ONCE (`bits` must have room).
 * The generator is Philox4x32-7 (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3). The
 * seed is its key. A counter is a row and a block within the row. Eight counters are computed at a time. */
static void random_bits(uint64_t seed, i64 row, uint16_t *out, i64 count) {
  const __m512i m0 = _mm512_set1_epi64(0xD2511F53), m1 = _mm512_set1_epi64(0xCD9E8D57);
  const __m512i numbers = _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0);
  for (i64 start = 0; start < count; start += AT_ONCE) {
    __m512i a = _mm512_add_epi64(_mm512_set1_epi64(start / 8), numbers), b = _mm512_setzero_si512();
    __m512i c = _mm512_set1_epi64(row), d = _mm512_setzero_si512();
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 7; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
      __m512i p = _mm512_mul_epu32(a, m0), q = _mm512_mul_epu32(c, m1); /* multiplies only the low halves */
      __m512i hi_p = _mm512_srli_epi64(p, 32), hi_q = _mm512_srli_epi64(q, 32);
      a = _mm512_ternarylogic_epi64(hi_q, b, _mm512_set1_epi64(k0), 0x96); /* exclusive or */
      c = _mm512_ternarylogic_epi64(hi_p, d, _mm512_set1_epi64(k1), 0x96);
      b = q;
      d = p;
    }
    __m512i low = _mm512_set1_epi64(0xffffffff);
    __m512i ab = _mm512_or_si512(_mm512_and_si512(a, low), _mm512_slli_epi64(b, 32));
    __m512i cd = _mm512_or_si512(_mm512_and_si512(c, low), _mm512_slli_epi64(d, 32));
    _mm512_storeu_si512(out + start, ab);
    _mm512_storeu_si512(out + start + AT_ONCE / 2, cd);
  }
}

/* A mask of the elements, of 16, that dropout keeps. */
static inline __mmask16 kept(const uint16_t *bits, i64 threshold) {
  __m256i x = _mm256_and_si256(_mm256_loadu_si256((const __m256i *)bits), _mm256_set1_epi16(ALL - 1));
  return _mm256_cmplt_epu16_mask(x, _mm256_set1_epi16((short)threshold));
}

/* `x` becomes gelu(x + bias). `slope` gets the derivative, unless it is NULL. */
void gelu(bf16 *x, const float *bias, bf16 *slope, i64 rows, i64 width, i64 threads) {
  threads = worthwhile(rows * width, threads);
  PARALLEL
  for (i64 row = 0; row < rows; row++) {
    i64 at = row * width;
    for EACH(i, width) {
      __mmask16 m = rest(width - i);
      __m512 derivative;
      down(x + at + i, m, gelu_of(plus(x + at, bias, i, m), &derivative));
      if (slope) down(slope + at + i, m, derivative);
    }
  }
}

/* `gradient`, of GELU's output, becomes that of its input, and `sums` that summed over rows. */
void gelu_backward(bf16 *gradient, const bf16 *slope, float *sums, i64 rows, i64 width, i64 threads) {
  threads = worthwhile(rows * width, threads);
  PARALLEL
  for (i64 row = 0; row < rows; row++) {
    i64 at = row * width, own = omp_get_thread_num() * width;
    for EACH(i, width) {
      __mmask16 m = rest(width - i);
      __m512 x = _mm512_mul_ps(up(gradient + at + i, m), up(slope + at + i, m));
      down(gradient + at + i, m, x);
      accumulate(sums + own + i, m, x);
    }
  }
  reduce(sums, width, threads);
}

/* `z` is the stream, and becomes stream + dropout(branch + bias). `y` may be the same memory as `z`. */
void add_norm(const bf16 *branch, const float *branch_bias, const float *weight, const float *bias,
              float *z, float *y, bf16 *low, float *mean, float *inverse_deviation, i64 rows,
              i64 width, float eps, float scale, uint64_t seed, i64 threshold, i64 threads) {
  threads = worthwhile(rows * width, threads);
  PARALLEL
  for (i64 row = 0; row < rows; row++) {
    i64 at = row * width;
    uint16_t bits[padded(width)];
    float *added = z + at;
    __m512 total = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    if (threshold < ALL) random_bits(seed, row, bits, width);
    for EACH(i, width) {
      __mmask16 m = rest(width - i), drawn = threshold < ALL ? kept(bits + i, threshold) & m : m;
      __m512 x = load(added + i, m);
      __m512 more = plus(branch + at, branch_bias, i, m);
      x = _mm512_mask3_fmadd_ps(more, _mm512_set1_ps(scale), x, drawn);
      store(added + i, m, x);
      total = _mm512_add_ps(total, x);
    }
    float average = _mm512_reduce_add_ps(total) / (float)width;
    __m512 center = _mm512_set1_ps(average);
    for EACH(i, width) {
      __mmask16 m = rest(width - i);
      __m512 x = _mm512_maskz_sub_ps(m, load(added + i, m), center);
      squares = _mm512_fmadd_ps(x, x, squares);
    }
    __m512 variance = _mm512_set1_ps(_mm512_reduce_add_ps(squares) / (float)width + eps);
    __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_sqrt_ps(variance));
    for EACH(i, width) {
      __mmask16 m = rest(width - i);
      __m512 x = _mm512_mul_ps(_mm512_sub_ps(load(added + i, m), center), inverse);
      x = _mm512_fmadd_ps(x, load(weight + i, m), load(bias + i, m));
      store(y + at + i, m, x);
      down(low + at + i, m, x);
    }
    mean[row] = average;
    inverse_deviation[row] = _mm512_cvtss_f32(inverse);
  }
}

/* `gradient` and `more` (or NULL) add up to the gradient of `y`. `z`, the sum of the forward pass,
 * becomes the gradient of the stream, and `branch` that of the branch. `sums` gets the gradients of
 * the norm's weight and bias, and the branch's gradient summed over rows. */
void add_norm_backward(const float *gradient, const bf16 *more, const float *mean,
                       const float *inverse_deviation, const float *weight, float *z, bf16 *branch,
                       float *sums, i64 rows, i64 width, float scale, uint64_t seed, i64 threshold,
                       i64 threads) {
  threads = worthwhile(rows * width, threads);
  PARALLEL
  for (i64 row = 0; row < rows; row++) {
    i64 at = row * width;
    float *of_weight = sums + 3 * omp_get_thread_num() * width;
    float *of_bias = of_weight + width, *of_branch = of_bias + width;
    uint16_t bits[padded(width)];
    float normal[padded(width)], whole[padded(width)];
    __m512 center = _mm512_set1_ps(mean[row]), inverse = _mm512_set1_ps(inverse_deviation[row]);
    __m512 total = _mm512_setzero_ps(), dot = _mm512_setzero_ps();
    for EACH(i, width) {
      __mmask16 m = rest(width - i);
      __m512 g = load(gradient + at + i, m);
      if (more) g = _mm512_add_ps(g, up(more + at + i, m));
      __m512 x = _mm512_mul_ps(_mm512_sub_ps(load(z + at + i, m), center), inverse);
      accumulate(of_weight + i, m, _mm512_mul_ps(g, x));
      accumulate(of_bias + i, m, g);
      g = _mm512_mul_ps(g, load(weight + i, m));
      total = _mm512_add_ps(total, g);
      dot = _mm512_fmadd_ps(g, x, dot);
      store(normal + i, m, x);
      store(whole + i, m, g);
    }
    __m512 a = _mm512_set1_ps(_mm512_reduce_add_ps(total) / (float)width);
    __m512 b = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / (float)width);
    if (threshold < ALL) random_bits(seed, row, bits, width);
    for EACH(i, width) {
      __mmask16 m = rest(width - i), drawn = threshold < ALL ? kept(bits + i, threshold) & m : m;
      __m512 x = _mm512_sub_ps(load(whole + i, m), a);
      x = _mm512_mul_ps(_mm512_fnmadd_ps(load(normal + i, m), b, x), inverse);
      store(z + at + i, m, x);
      x = _mm512_maskz_mul_ps(drawn, x, _mm512_set1_ps(scale));
      down(branch + at + i, m, x);
      accumulate(of_branch + i, m, x);
    }
  }
  reduce(sums, 3 * width, threads);
}

/* Copy rows of tokens, (token, part, head, size), to (part, sequence, head, token, size), padded with
 * zeros. Add `bias`, and multiply part 0 by `scale`. */
void split_heads(const bf16 *x, const float *bias, bf16 *apart, const i64 *starts, const i64 *lengths,
                 i64 sequences, i64 length, i64 count, i64 heads, i64 size, float scale, i64 threads) {
  i64 width = count * heads * size;
  threads = worthwhile(sequences * length * width, threads);
  PARALLEL
  for (i64 pair = 0; pair < sequences * heads; pair++) {
    i64 sequence = pair / heads, head = pair % heads, tokens = lengths[sequence];
    for (i64 part = 0; part < count; part++) {
      i64 column = (part * heads + head) * size;
      const bf16 *from = x + starts[sequence] * width + column;
      const float *own = bias ? bias + column : NULL;
      bf16 *to = apart + (part * sequences * heads + pair) * length * size;
      for (i64 token = 0; token < tokens; token++)
        copy(to + token * size, from + token * width, own, size, part ? 1.0f : scale);
      clear(to + tokens * size, (length - tokens) * size);
    }
  }
}

/* Undo split_heads, without a bias; part 0 is multiplied by `scale`. Rows of no sequence become 0. */
void join_heads(const bf16 *apart, bf16 *x, const i64 *starts, const i64 *lengths, i64 sequences,
                i64 length, i64 count, i64 heads, i64 size, float scale, i64 rows, i64 threads) {
  i64 width = count * heads * size, used = starts[sequences - 1] + lengths[sequences - 1];
  threads = worthwhile(rows * width, threads);
  PARALLEL
  for (i64 pair = 0; pair < sequences * heads; pair++) {
    i64 sequence = pair / heads, head = pair % heads, tokens = lengths[sequence];
    for (i64 part = 0; part < count; part++) {
      const bf16 *from = apart + (part * sequences * heads + pair) * length * size;
      bf16 *to = x + starts[sequence] * width + (part * heads + head) * size;
      for (i64 token = 0; token < tokens; token++)
        copy(to + token * width, from + token * size, NULL, size, part ? 1.0f : scale);
    }
  }
  clear(x + used * width, (rows - used) * width);
}

/* `scores` become probabilities over the tokens of a sequence; padding gets 0. `dropped` gets them
 * after dropout, not scaled, unless it is NULL. `length` is a multiple of LANES. With one query, only
 * the first token of each sequence asks. */
void softmax(bf16 *scores, bf16 *dropped, const i64 *lengths, i64 sequences, i64 heads, i64 queries,
             i64 length, uint64_t seed, i64 threshold, i64 threads) {
  threads = worthwhile(sequences * heads * queries * length, threads);
  PARALLEL
  for (i64 pair = 0; pair < sequences * heads; pair++) {
    i64 tokens = lengths[pair / heads], asked = queries == 1 ? 1 : tokens;
    i64 at = pair * queries * length, end = at + queries * length;
    i64 sharing = length < BITS ? BITS / length : 1; /* short rows share one draw */
    uint16_t bits[padded(sharing * length)];
    float powers[padded(length)];
    for (i64 query = 0; query < asked; query++, at += length) {
      __m512 most = _mm512_set1_ps(-__builtin_inff()), total = _mm512_setzero_ps();
      for EACH(i, tokens) {
        __mmask16 m = rest(tokens - i);
        most = _mm512_mask_max_ps(most, m, most, up(scores + at + i, m));
      }
      most = _mm512_set1_ps(_mm512_reduce_max_ps(most));
      for EACH(i, tokens) {
        __mmask16 m = rest(tokens - i);
        __m512 x = exponential(_mm512_sub_ps(up(scores + at + i, m), most));
        total = _mm512_mask_add_ps(total, m, total, x);
        store(powers + i, 0xffff, x);
      }
      __m512 scale = _mm512_set1_ps(1.0f / _mm512_reduce_add_ps(total));
      if (dropped && query % sharing == 0)
        random_bits(seed, pair * queries + query, bits, sharing * length);
      for EACH(i, length) {
        __mmask16 own = i < tokens ? rest(tokens - i) : 0, m = rest(length - i);
        __m512 x = _mm512_maskz_mul_ps(own, load(powers + i, own), scale);
        down(scores + at + i, m, x);
        if (!dropped) continue;
        __mmask16 drawn = kept(bits + query % sharing * length + i, threshold);
        down(dropped + at + i, m, _mm512_maskz_mov_ps(drawn, x));
      }
    }
    clear(scores + at, end - at);
    if (dropped) clear(dropped + at, end - at);
  }
}

/* `gradient`, of the probabilities after dropout, becomes the gradient of the scores. An element was
 * kept if `dropped` is not 0 there. */
void softmax_backward(bf16 *gradient, const bf16 *probabilities, const bf16 *dropped,
                      const i64 *lengths, i64 sequences, i64 heads, i64 queries, i64 length,
                      i64 threads) {
  threads = worthwhile(sequences * heads * queries * length, threads);
  PARALLEL
  for (i64 pair = 0; pair < sequences * heads; pair++) {
    i64 tokens = lengths[pair / heads], asked = queries == 1 ? 1 : tokens;
    i64 at = pair * queries * length, end = at + queries * length;
    for (i64 query = 0; query < asked; query++, at += length) {
      __m512 dot = _mm512_setzero_ps();
      for EACH(i, tokens) {
        __mmask16 m = rest(tokens - i);
        dot = _mm512_fmadd_ps(up(gradient + at + i, m), up(dropped + at + i, m), dot);
      }
      dot = _mm512_set1_ps(_mm512_reduce_add_ps(dot));
      for EACH(i, length) {
        __mmask16 m = rest(length - i);
        __m512 p = up(probabilities + at + i, m);
        __mmask16 drawn = _mm512_cmp_ps_mask(up(dropped + at + i, m), _mm512_setzero_ps(), _CMP_NEQ_UQ);
        __m512 g = _mm512_maskz_mov_ps(drawn, up(gradient + at + i, m));
        down(gradient + at + i, m, _mm512_mul_ps(p, _mm512_sub_ps(g, dot)));
      }
    }
    clear(gradient + at, end - at);
  }
}

void column_sums(const bf16 *x, float *sums, i64 rows, i64 width, i64 threads) {
  threads = worthwhile(rows * width, threads);
  PARALLEL
  for (i64 row = 0; row < rows; row++) {
    float *own = sums + omp_get_thread_num() * width;
    for EACH(i, width) accumulate(own + i, rest(width - i), up(x + row * width + i, rest(width - i)));
  }
  reduce(sums, width, threads);
}

void add(float *x, const bf16 *more, i64 count, i64 threads) {
  threads = worthwhile(count, threads);
  PARALLEL
  for EACH(i, count) accumulate(x + i, rest(count - i), up(more + i, rest(count - i)));
}
