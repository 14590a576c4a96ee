// What the scans of the perceptron share: sizes, and pieces of what programs do.

constexpr int C = 64, I = 64, O = 64, THREADS = 256, J = SLOT ? 2 : 1, F = 128 * RANKS;

// Bytes of a tile, and of the sums of a chunk in float32, with a number a token behind them where steps are bounded.
constexpr u32 TILE = 8192, TOKEN_SUMS = C * O * 4, PART = TOKEN_SUMS + (BOUND ? C * 4 : 0);

// Numbers a token of a chunk in what the scan leaves of norms: squares of h, of u1 and of u2, then the rates of both matrices.
constexpr int SQUARES = 5 * C;

// Which of a program's copies, or of a group's, this thread asks for: the first thread of every warp has one, for each takes it some 250
// cycles; all others have none.
constexpr u32 NONE = 8;
DEVICE u32 copies_of(u32 lane, u32 warp) { return lane == 0 ? warp : NONE; }

// Rows 0 and 1 of what products leave of a matrix: the eight numbers of columns ``8 j`` and ``8 j + 8``, row by row.
DEVICE void fragments(const float (&x)[32], u32 (&a)[16]) {
#pragma unroll
  for (int i = 0; i < 16; i++) a[i] = pack(x[2 * i], x[2 * i + 1]);
}

// Where rows of this thread's warp go, with `store_matrices`: 16 rows of a tile.
DEVICE void store_tile(u32 tile, u32 first, u32 lane, const u32 (&a)[16]) {
  const u32 place = at(tile, first + (lane & 15), lane >> 4);
#pragma unroll
  for (int j = 0; j < 8; j += 2) store_matrices(place ^ (j << 4), a[2 * j], a[2 * j + 1], a[2 * j + 2], a[2 * j + 3]);
}

// What `store_tile` has stored.
DEVICE void load_fragments(u32 tile, u32 first, u32 lane, u32 (&a)[16]) {
  const u32 place = at(tile, first + (lane & 15), lane >> 4);
#pragma unroll
  for (int j = 0; j < 8; j += 2) load_matrices(place ^ (j << 4), a[2 * j], a[2 * j + 1], a[2 * j + 2], a[2 * j + 3]);
}

// ``d = a b`` over all 64 columns of a.
template <int A_ACROSS, int B_ACROSS>
DEVICE void products(float (&d)[32], u32 a, u32 b, int add) {
#pragma unroll
  for (int s = 0; s < 4; s++)
    product<A_ACROSS, B_ACROSS>(d, beyond(tile(a), s * (A_ACROSS ? 2048 : 32)), beyond(tile(b), s * (B_ACROSS ? 2048 : 32)),
                                add || s > 0);
}

// Half of the columns of ``a b``: registers are short.
template <int A_ACROSS, int B_ACROSS>
DEVICE void products_of_a_side(float (&d)[16], u32 a, u32 b, int side) {
#pragma unroll
  for (int s = 0; s < 4; s++)
    product<A_ACROSS, B_ACROSS>(d, beyond(tile(a), s * (A_ACROSS ? 2048 : 32)),
                                beyond(tile(b + (B_ACROSS ? 64 : 4096) * side), s * (B_ACROSS ? 2048 : 32)), s > 0);
}

// Sums over the hidden width: every program leaves its part, 64 x 64, in the place of its rank, and copies it there in all others. Pieces
// of four channels are permuted within rows, so that neither those who write rows nor those who read channels meet in a bank.
DEVICE u32 piece_of(u32 sums, u32 token, u32 piece) {
  return sums + token * 256 + ((piece ^ ((token & 1) << 2 | (token >> 1 & 3))) << 4);
}

// 32 channels of a group of four warps, as products leave them.
DEVICE void store_part(u32 own, u32 row, u32 group, u32 t, const float (&part)[16]) {
  const u32 place = piece_of(own, row, 8 * group + (t >> 1)) + (t & 1) * 8;
#pragma unroll
  for (int j = 0; j < 8; j++) store((place ^ ((j >> 1) << 5)) + 2048 * (j & 1), part[2 * j], part[2 * j + 1]);
}

// By one thread, after a barrier; ``barrier`` counts what comes from the others.
DEVICE void tell_all(u32 sums, u32 barrier, u32 rank) {
  arrive_expecting(barrier, (RANKS - 1) * PART);
#pragma unroll
  for (int r = 1; r < RANKS; r++)
    copy_there(neighbour(sums + rank * PART, rank ^ r), sums + rank * PART, PART, neighbour(barrier, rank ^ r));
}

// Four channels of a token, in the order of ranks.
DEVICE void add_up(u32 from, float* x) {
  load(from, x[0], x[1], x[2], x[3]);
#pragma unroll
  for (int r = 1; r < RANKS; r++) {
    float more[4];
    load(from + r * PART, more[0], more[1], more[2], more[3]);
#pragma unroll
    for (int i = 0; i < 4; i++) x[i] += more[i];
  }
}

// Over the four threads of a token.
DEVICE float total(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// Both matrices become ``mix[0] a + mix[1] m`` and ``mix[2] a + mix[3] m``. ``always`` is a condition that holds, of which compilers do not
// know it: they would otherwise move this behind the next wait, and spill.
DEVICE void mixed(float (&a)[32], float (&m)[32], const float* mix, bool always) {
  if (!always) return;
#pragma unroll
  for (int i = 0; i < 32; i++) {
    float x = mix[2] * a[i] + mix[3] * m[i];
    a[i] = mix[0] * a[i] + mix[1] * m[i];
    m[i] = x;
  }
}

// 16 numbers of a token less their mean, over their size; returns what they were multiplied with. Nothing where there is no norm.
DEVICE float normed(float (&y)[16]) {
  if (!NORM) return 1.0f;
  float mean = 0.0f, square = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; i++) mean += y[i];
  mean = total(mean) * (1.0f / O);
#pragma unroll
  for (int i = 0; i < 16; i++) y[i] -= mean, square += y[i] * y[i];
  const float scale = reciprocal_root(total(square) * (1.0f / O) + EPS);
#pragma unroll
  for (int i = 0; i < 16; i++) y[i] *= scale;
  return scale;
}

// The gradient at the input of that norm, from the one at its output y.
DEVICE void normed_vjp(float (&d)[16], const float (&y)[16], float scale) {
  if (!NORM) return;
  float mean = 0.0f, along = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; i++) mean += d[i], along += d[i] * y[i];
  mean = total(mean) * (1.0f / O), along = total(along) * (1.0f / O);
#pragma unroll
  for (int i = 0; i < 16; i++) d[i] = (d[i] - mean - y[i] * along) * scale;
}

// The square of a token's key, of which this thread has a quarter.
DEVICE float key_square(u32 keys, u32 token, u32 t) {
  const u32 place = at(keys, token, t >> 1) + (t & 1) * 8;
  float square = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    u32 x, z;
    load(place ^ (j << 5), x, z);
    square += low(x) * low(x) + high(x) * high(x) + low(z) * low(z) + high(z) * high(z);
  }
  return total(square);
}

// Of four channels of a token: what the memory answers, the value, and the gate of the bias.
DEVICE void asked(float (&p)[4], float (&value)[4], float (&of_bias)[4], const float* y, u32 key, int j, uint2 v,
                  const float* gate, long long token, long long channels) {
  value[0] = low(v.x), value[1] = high(v.x), value[2] = low(v.y), value[3] = high(v.y);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    p[i] = y[i];
    of_bias[i] = GATE == 2 ? gate[channels + 16 * j + i] : GATE == 1 ? gate[token] : 0.0f;
  }
  if (RESIDUAL) {
    u32 x, z;
    load(key ^ (j << 5), x, z);
    p[0] += low(x), p[1] += high(x), p[2] += low(z), p[3] += high(z);
  }
}

// Over the eight threads of a column.
DEVICE float total_of_rows(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 4);
  x += __shfl_xor_sync(0xffffffffu, x, 8);
  return x + __shfl_xor_sync(0xffffffffu, x, 16);
}

// Two numbers of every row and column of this thread, in a matrix ``[64, 64]``.
template <class Half>
DEVICE u32* at_place(Half* matrix, u32 row, u32 t, int i) {
  return (u32*)(matrix + (row + 8 * (i & 1)) * C + 8 * (i >> 1) + 2 * t);
}

// The chunk of all of a head's, of the one that is `local` in a group.
DEVICE long long chunk_of(int local, int first, int count, int total_chunks) {
  return (long long)(local / count) * total_chunks + first + local % count;
}

// What queries read of memory and slot, ``rows_0 x + rows_1 more``, with the weights of both rows of this thread.
DEVICE void by_rows(float (&x)[32], const float (&more)[32], const float (&weight)[2 * J]) {
#pragma unroll
  for (int i = 0; i < 32; i++) {
    x[i] *= weight[i >> 1 & 1];
    if (SLOT) x[i] += more[i] * weight[2 * J - 2 + (i >> 1 & 1)];
  }
}

// The rates of a chunk's tokens for the first matrix or the second.
DEVICE const float* rates_of(const float* lr, const float* squares, long long chunk, long long local, int matrix) {
  return BOUND ? squares + local * SQUARES + (3 + matrix) * C : lr + chunk * C;
}

// What scores are multiplied with, ``-pairs s`` by columns: pairs, and rates of two columns of each of N / 2 tiles of eight.
template <int N>
struct Weights {
  u32 pairs[N];
  float2 rates[N / 2];
};

template <int N>
DEVICE void read_weights(Weights<N>& w, const unsigned short* pairs, const float* rates, u32 row, u32 t) {
#pragma unroll
  for (int i = 0; i < N; i++) w.pairs[i] = *at_place(pairs, row, t, i);
#pragma unroll
  for (int i = 0; i < N / 2; i++) w.rates[i] = *(const float2*)(rates + 8 * i + 2 * t);
}

DEVICE void weighted(float (&x)[32], const Weights<16>& w) {
#pragma unroll
  for (int i = 0; i < 16; i++) {
    const float2 rate = w.rates[i >> 1];
    x[2 * i] *= -(low(w.pairs[i]) * rate.x), x[2 * i + 1] *= -(high(w.pairs[i]) * rate.y);
  }
}

// Sums of columns over the 16 rows of a warp, two numbers of each tile of eight, and over so many warps.
template <int N>
DEVICE void add_columns(u32 sums, const float (&x)[N], u32 warp, u32 lane) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    const float sum = total_of_rows(x[i]);
    if (lane < 4) store(sums + (warp * C + 8 * (i >> 1) + 2 * lane + (i & 1)) * 4, sum);
  }
}

DEVICE float column_sum(u32 sums, u32 column, int warps) {
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < warps; i++) sum += load(sums + (i * C + column) * 4);
  return sum;
}

// Of rows of a product with those of a tile, this thread's two.
DEVICE void inner_rows(const float (&x)[32], const u32 (&a)[16], float& even, float& odd) {
  even = odd = 0.0f;
#pragma unroll
  for (int i = 0; i < 16; i++) (i & 1 ? odd : even) += x[2 * i] * low(a[i]) + x[2 * i + 1] * high(a[i]);
  even = total(even), odd = total(odd);
}

// One number a thread over all programs, in the order of ranks: what each says of token `thread`, of as many as threads are here.
DEVICE float told_sum(u32 told, u32 barrier, u32 parity, u32 rank, u32 thread, u32 threads, float x) {
  const u32 place = told + (rank * threads + thread) * 4;
  store(place, x);
#pragma unroll
  for (int r = 1; r < RANKS; r++) tell(neighbour(place, rank ^ r), x, neighbour(barrier, rank ^ r));
  if (thread == 0) arrive_expecting(barrier, (RANKS - 1) * threads * 4);
  wait_for(barrier, parity);
  float sum = 0.0f;
#pragma unroll
  for (int r = 0; r < RANKS; r++) sum += load(told + (r * threads + thread) * 4);
  return sum;
}
