// The reverse scan of `miras.kernels._mlp.reverse` for heads and chunks of 64: clusters of programs that keep gradients of a head's
// weights in registers.
//
// A program has 128 of the hidden width, each of its two groups of four warps 64: of the gradients e of both matrices and f of their slots,
// ``[64, 64]`` a group, as sums of products of tiles, both operands of which are in shared memory. A chunk:
//
//     u1' = c (K e1) + ..,  h' = c (u2 e2) + ..     [tokens, F], with the coefficients c of a token
//     u2' = c (h e2^T) + .. + (u1' slope) W2^T      summed over programs through each other's shared memory
//     o'  = the pull-back of the error
//     z'  = u1' turn + h' slope + (o' W2) slope
//     e1  = mix e1 + queries + K^T z',  e2 = mix e2 + queries + u2^T (u1' slope) + o'^T h

// Tiles in shared memory: keys of two chunks, errors; what the hidden width is multiplied with, in halves (the gradient of u1, slope, turn,
// the gradient of h), of which slopes stay and the others make room for z' of reads and for what queries sent (2 J); halves of h and W2; of
// the gradients of all stacks, in whose places others stand once they have been read: e1 and f1 of a half, e1 and f1 of the other, then
// those of the second matrix.
constexpr u32 CLUSTER = RANKS;
constexpr u32 KEYS = 0, ERRORS = KEYS + 2 * TILE, WIDE = ERRORS + TILE, READ_Z = WIDE, SENT = WIDE + 4 * TILE,
              HIDDEN = WIDE + 8 * TILE, SECOND = HIDDEN + 2 * TILE, LATE = SECOND + 2 * TILE, LATE2 = LATE + 2 * J * TILE,
              PULLED = LATE, OUT = LATE2, READ_H = SLOT ? LATE2 + TILE : WIDE + 6 * TILE, Z = LATE + (SLOT ? 1 : 4) * TILE,
              SUMS = LATE + (SLOT ? 8 : 6) * TILE, NORMS = SUMS + RANKS * PART, TOLD = NORMS + (BOUND ? 8 * C * 4 : 0),
              BARRIERS = TOLD + (BOUND ? 4 * RANKS * C * 4 : 0), AGAIN = BARRIERS + (BOUND ? 72 : 48), BYTES = AGAIN + 8;

// What barriers count: sums of even and of odd chunks, that all have read them, and tiles; where steps are bounded, W2, which waits until
// u1 has been read in its place, and sums of norms of even and of odd chunks.
constexpr u32 FREE = BARRIERS + 16, EARLY = BARRIERS + 24, LOADED = BARRIERS + 32, ASKED = BARRIERS + 40, LATER = BARRIERS + 48;

// In `NORMS`: inner products of both groups, of u1 and then of h; squares of keys; and what gradients of norms
// are multiplied with: u1, h, u2.
static_assert(BYTES == SHARED, "what the launch has set aside");

// ``d = a b`` of 32 columns, over both halves of the hidden width, which are so many tiles apart.
template <int A_APART, int B_APART>
DEVICE void products_of_halves(float (&d)[16], u32 a, u32 b, int add) {
#pragma unroll
  for (int s = 0; s < 8; s++)
    product<0, 0>(d, beyond(tile(a), (s >> 2) * A_APART * TILE + (s & 3) * 32),
                  beyond(tile(b), (s >> 2) * B_APART * TILE + (s & 3) * 32), add || s > 0);
}

// ``d + of_rows more`` for 32 of the columns.
DEVICE void add_scaled(float* d, const float (&more)[16], float of_even, float of_odd) {
#pragma unroll
  for (int i = 0; i < 16; i++) d[i] += more[i] * (i & 2 ? of_odd : of_even);
}

// ``d *= a``, and ``a = d slope``, of numbers in the same places.
DEVICE void multiply(float (&d)[32], const u32 (&a)[16]) {
#pragma unroll
  for (int i = 0; i < 16; i++) d[2 * i] *= low(a[i]), d[2 * i + 1] *= high(a[i]);
}

DEVICE void through_slopes(const float (&d)[32], const u32 (&slope)[16], u32 (&a)[16]) {
#pragma unroll
  for (int i = 0; i < 16; i++) a[i] = pack(d[2 * i] * low(slope[i]), d[2 * i + 1] * high(slope[i]));
}

// ``d += a``, and ``dz += dh slope``.
DEVICE void add(float (&d)[32], const u32 (&a)[16]) {
#pragma unroll
  for (int i = 0; i < 16; i++) d[2 * i] += low(a[i]), d[2 * i + 1] += high(a[i]);
}

DEVICE void add_through_slopes(float (&dz)[32], const float (&dh)[32], const u32 (&slope)[16]) {
#pragma unroll
  for (int i = 0; i < 16; i++) dz[2 * i] += dh[2 * i] * low(slope[i]), dz[2 * i + 1] += dh[2 * i + 1] * high(slope[i]);
}

DEVICE float clipped(float x) { return fminf(fmaxf(x, -LIMIT), LIMIT); }

DEVICE void stack_of(const float* stack, u32 row, u32 column, float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i++) x[i] = stack[(row + 8 * (i >> 1 & 1)) * F + column + 8 * (i >> 2) + (i & 1)];
}

DEVICE void stack_to(float* stack, u32 row, u32 column, const float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i++) stack[(row + 8 * (i >> 1 & 1)) * F + column + 8 * (i >> 2) + (i & 1)] = x[i];
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    reverse(const __grid_constant__ Map k, const unsigned short* v, const float* gate, const float* lr, const float* inverse,
            const float* mix, const float* into, const float* squares, const float* d_rates, const __grid_constant__ Map u1,
            const __grid_constant__ Map seen2, const float* kept_o, const __grid_constant__ Map kept_u2,
            const __grid_constant__ Map h, const __grid_constant__ Map slope, const __grid_constant__ Map turn,
            const __grid_constant__ Map hr, const __grid_constant__ Map d_h, const __grid_constant__ Map d_u1,
            const __grid_constant__ Map d_zr, const float* d_u2, const __grid_constant__ Map sent, float* d_w1, float* d_w2,
            const __grid_constant__ Map late1_out, const __grid_constant__ Map late2_out, const __grid_constant__ Map d_z,
            unsigned short* d_o, float* d_k, unsigned short* d_v, float* d_gate, int first, int count, int total_chunks) {
  extern __shared__ __align__(1024) unsigned char room[];
  u32 base = shared_address(room);
  const u32 thread = threadIdx.x, lane = thread & 31, warp = warp_index(), half = warp >> 2;
  const u32 g = lane >> 2, t = lane & 3, rank = cluster_rank(), mine = (warp & 3) * 16, row = mine + g;
  const u32 program = rank * 128, columns = program + half * 64, column = columns + 2 * t;
  const bool leads = (thread & 127) == 0;  // copies of its group
  const u32 copies = copies_of(lane, warp);
  const u32 token = thread >> 2;  // whose error this thread helps with: 16 channels from ``4 t`` on
  const long long b = blockIdx.x / RANKS;

  if (thread < (BOUND ? 9 : 6)) barrier(base + BARRIERS + 8 * thread, thread == 2 ? RANKS : 1);
  if (thread == 0) store(base + AGAIN, base, base);
  barriers_made();
  cluster_arrive();
  float e1[32], e2[32], f1[32], f2[32];
  float *grads1 = d_w1 + b * J * I * F, *grads2 = d_w2 + b * J * F * O;
  stack_of(grads1, row, column, e1);
  stack_of(grads2, row, column, e2);
  if (SLOT) {
    stack_of(grads1 + I * F, row, column, f1);
    stack_of(grads2 + F * O, row, column, f2);
  }
  cluster_wait();

  // of the last chunk, then of the one before the current
  auto load_early = [&](int n) {
    const u32 tokens = (b * total_chunks + first + n) * C, rows = (b * count + n) * C, barrier = base + EARLY;
    if (thread == 0) arrive_expecting(barrier, 10 * TILE);
    const Map* const map = warp == 0 ? &k : warp == 1 ? &kept_u2 : warp == 2 ? &d_u1 : warp == 3 ? &turn : &d_h;
    const u32 to = warp == 0 ? KEYS + (n & 1) * TILE : warp == 1 ? ERRORS : WIDE + (warp == 2 ? 0 : 2 * warp - 2) * TILE;
    if (copies < 5) copy_in(base + to, *map, warp ? rows : tokens, warp < 2 ? 0 : program, barrier);
  };
  auto load_slopes = [&](int n) {  // of a group, which reads those of the chunk before to its end
    if (leads) copy_in(base + WIDE + (2 + half) * TILE, slope, (b * count + n) * C, columns, base + EARLY);
  };
  load_early(count - 1), load_slopes(count - 1);

  for (int n = count - 1; n >= 0; n--) {
    const long long chunk = opaque(b * total_chunks + first + n), local = opaque(b * count + n);
    const u32 told = count - 1 - n, counter = base + BARRIERS + 8 * (told & 1), rows = local * C;
    if (thread == 0) arrive_expecting(base + LOADED, 4 * TILE);
    if (lane == 0 && warp > 5) {
      const Map& map = warp == 6 ? h : BOUND ? u1 : seen2;
      copy_in(base + (warp == 6 ? HIDDEN : SECOND), map, warp == 6 || BOUND ? rows : rows * J, program, base + LOADED);
    }

    // gradients of the stacks after the chunk, for products and for the kernels that follow
    u32 narrow[16];
    fragments(e1, narrow);
    store_tile(base + LATE + half * J * TILE, mine, lane, narrow);
    fragments(e2, narrow);
    store_tile(base + LATE2 + half * J * TILE, mine, lane, narrow);
    if (SLOT) {
      fragments(f1, narrow);
      store_tile(base + LATE + (half * J + 1) * TILE, mine, lane, narrow);
      fragments(f2, narrow);
      store_tile(base + LATE2 + (half * J + 1) * TILE, mine, lane, narrow);
    }
    publish();
    __syncthreads();
    if (lane == 0 && (warp & 3) < 2)
      copy_out(warp & 1 ? late2_out : late1_out, rows * J, columns, base + (warp & 1 ? LATE2 : LATE) + half * J * TILE), close();

    base = again(base + AGAIN);
    const u32 late = base + LATE + half * J * TILE, late2 = late + 2 * J * TILE;

    // what they pull at: the gradient of errors in the hidden width, then that of z
    const float *write = into + chunk * J * C + row, *rates = rates_of(lr, squares, chunk, local, 1) + row;
    const float c0 = write[0] * rates[0], c1 = write[8] * rates[8];  // with the rates of the second matrix
    const float a0 = SLOT ? write[C] * rates[0] : 0.0f, a1 = SLOT ? write[C + 8] * rates[8] : 0.0f;
    float by[4];
#pragma unroll
    for (int i = 0; i < J * J; i++) by[i] = mix[chunk * J * J + i];
    float dz[32];
    if (BOUND) {
      float dh[32];
      u32 x[16], bend[16];
      wait_for(base + EARLY, told & 1);
      {  // squares of keys
        const float square = key_square(base + KEYS + (n & 1) * TILE, token, t);
        if (t == 0) store(base + NORMS + (4 * C + token) * 4, square);
      }
      const float w0 = write[0], w1 = write[8], v0 = SLOT ? write[C] : 0.0f, v1 = SLOT ? write[C + 8] : 0.0f;
#pragma unroll
      for (int matrix = 0; matrix < 2; matrix++) {
        float (&d)[32] = matrix ? dh : dz;
        const u32 with = matrix ? base + ERRORS : base + KEYS + (n & 1) * TILE, of = matrix ? late2 : late;
        float more[16];
        begin();
        products<0, 1>(d, with, of, 0);
        if (SLOT) products_of_a_side<0, 1>(more, with, of + TILE, 0);
        commit();
        end();
        settle(d);
#pragma unroll
        for (int i = 0; i < 32; i++) d[i] *= i & 2 ? w1 : w0;
        if (SLOT) {
          settle(more);
          add_scaled(d, more, v0, v1);
          begin();
          products_of_a_side<0, 1>(more, with, of + TILE, 1);
          commit();
          end();
          settle(more);
          add_scaled(d + 16, more, v0, v1);
        }
      }
      wait_for(base + LOADED, told & 1);
      u32 errors[16];
      float even, odd;
      load_fragments(base + HIDDEN + half * TILE, mine, lane, x);
      inner_rows(dh, x, even, odd);
      if (t == 0)
        store(base + NORMS + ((2 + half) * C + row) * 4, even), store(base + NORMS + ((2 + half) * C + row + 8) * 4, odd);
      load_fragments(base + SECOND + half * TILE, mine, lane, errors);
      inner_rows(dz, errors, even, odd);
      if (t == 0) store(base + NORMS + (half * C + row) * 4, even), store(base + NORMS + (half * C + row + 8) * 4, odd);
      if (leads) read<0>();
      publish();
      __syncthreads();
      if (thread == 0) arrive_expecting(base + LATER, 2 * TILE), copy_in(base + SECOND, seen2, rows * J, program, base + LATER);
      if (thread < 2 * C) {
        const u32 which = thread / C, one = thread % C;
        const float* norms = squares + local * SQUARES + one;
        const float mine_here =
            load(base + NORMS + (2 * which * C + one) * 4) + load(base + NORMS + ((2 * which + 1) * C + one) * 4);
        const float sum = told_sum(base + TOLD + (told & 1) * 2 * RANKS * C * 4, base + LATER + 8 + 8 * (told & 1), told >> 1 & 1,
                                   rank, thread, 2 * C, mine_here);
        const float left = which ? norms[0] : load(base + NORMS + (4 * C + one) * 4), right = which ? norms[2 * C] : norms[C];
        float d_lr, d_bound, d_square;
        bounded_vjp(d_rates[(local * 2 + which) * C + one] + sum, lr[chunk * C + one], inverse[chunk * C + one], left * right,
                    d_lr, d_bound, d_square);
        if (which) {
          store(base + NORMS + (6 * C + one) * 4, d_square * right);
          store(base + NORMS + (7 * C + one) * 4, d_square * left);
        } else {
          store(base + NORMS + (5 * C + one) * 4, d_square * left);
        }
      }
      __syncthreads();
      base = again(base + AGAIN);
      const float *rates1 = rates_of(lr, squares, chunk, local, 0) + row, s0 = rates1[0], s1 = rates1[8];
      const float u0 = load(base + NORMS + (5 * C + row) * 4), u8 = load(base + NORMS + (5 * C + row + 8) * 4);
      const float h0 = load(base + NORMS + (6 * C + row) * 4), h8 = load(base + NORMS + (6 * C + row + 8) * 4);
#pragma unroll
      for (int i = 0; i < 32; i++)
        dz[i] = dz[i] * (i & 2 ? s1 : s0) + (i & 2 ? u8 : u0) * (i & 1 ? high(errors[i >> 1]) : low(errors[i >> 1]));
      load_fragments(base + HIDDEN + half * TILE, mine, lane, x);
#pragma unroll
      for (int i = 0; i < 32; i++)
        dh[i] = dh[i] * (i & 2 ? rates[8] : rates[0]) + (i & 2 ? h8 : h0) * (i & 1 ? high(x[i >> 1]) : low(x[i >> 1]));
      load_fragments(base + WIDE + half * TILE, mine, lane, x);
      add(dz, x);
      load_fragments(base + WIDE + (2 + half) * TILE, mine, lane, bend);
      through_slopes(dz, bend, narrow);
      store_tile(base + PULLED + half * J * TILE, mine, lane, narrow);
      load_fragments(base + WIDE + (4 + half) * TILE, mine, lane, x);
      multiply(dz, x);
      load_fragments(base + WIDE + (6 + half) * TILE, mine, lane, x);
      add(dh, x);
      add_through_slopes(dz, dh, bend);
      wait_for(base + LATER, told & 1);
    } else {
      {
        u32 x[16], bend[16];
        float more[32];
        wait_for(base + EARLY, told & 1);
        begin();
        products<0, 1>(dz, base + KEYS + (n & 1) * TILE, late, 0);
        if (SLOT) products<0, 1>(more, base + KEYS + (n & 1) * TILE, late + TILE, 0);
        commit();
        end();
        settle(dz);
        if (SLOT) settle(more);
#pragma unroll
        for (int i = 0; i < 32; i++) {
          dz[i] *= i & 2 ? c1 : c0;
          if (SLOT) dz[i] += more[i] * (i & 2 ? a1 : a0);
        }
        load_fragments(base + WIDE + half * TILE, mine, lane, x);
        add(dz, x);
        load_fragments(base + WIDE + (2 + half) * TILE, mine, lane, bend);
        through_slopes(dz, bend, narrow);
        load_fragments(base + WIDE + (4 + half) * TILE, mine, lane, x);
        multiply(dz, x);
      }
      {
        float dh[32], more[16];
        u32 x[16], bend[16];
        begin();
        products<0, 1>(dh, base + ERRORS, late2, 0);
        if (SLOT) products_of_a_side<0, 1>(more, base + ERRORS, late2 + TILE, 0);
        commit();
        if (leads) read<0>();
        group_barrier(half);  // what is in the places of `PULLED` has been read, and gradients of u1
        if (leads) copy_in(base + READ_Z + half * TILE, d_zr, rows, columns, base + ASKED);
        store_tile(base + PULLED + half * J * TILE, mine, lane, narrow);
        end();
        settle(dh);
#pragma unroll
        for (int i = 0; i < 32; i++) dh[i] *= i & 2 ? c1 : c0;
        if (SLOT) {
          settle(more);
          add_scaled(dh, more, a0, a1);
          begin();
          products_of_a_side<0, 1>(more, base + ERRORS, late2 + TILE, 1);
          commit();
        }
        load_fragments(base + WIDE + (6 + half) * TILE, mine, lane, x);
        add(dh, x);
        if (SLOT) {
          end();
          settle(more);
          add_scaled(dh + 16, more, a0, a1);
        }
        load_fragments(base + WIDE + (2 + half) * TILE, mine, lane, bend);
        add_through_slopes(dz, dh, bend);
      }
      wait_for(base + LOADED, told & 1);
    }
    fragments(dz, narrow);  // registers are short
    store_tile(base + Z + half * J * TILE, mine, lane, narrow);
    publish();
    __syncthreads();

    base = again(base + AGAIN);

    // the gradient of the errors, told to all
    if (thread == 32)
      arrive_expecting(base + ASKED, (2 * J + 4) * TILE), copy_in(base + SENT, sent, rows * 2 * J, 0, base + ASKED);
    if (BOUND && leads) copy_in(base + READ_Z + half * TILE, d_zr, rows, columns, base + ASKED);
    {
      float part[16], more[16];
      begin();
      products_of_halves<1, J>(part, base + HIDDEN, base + LATE2 + half * 4096, 0);
      if (SLOT) products_of_halves<1, J>(more, base + HIDDEN, base + LATE2 + TILE + half * 4096, 0);
      commit();
      end();
      settle(part);
      if (SLOT) settle(more);
#pragma unroll
      for (int i = 0; i < 16; i++) {
        part[i] *= i & 2 ? c1 : c0;
        if (SLOT) part[i] += more[i] * (i & 2 ? a1 : a0);
      }
      begin();
      products_of_halves<J, 1>(part, base + PULLED, base + SECOND + half * 4096, 1);
      commit();
      end();
      settle(part);
      if (RANKS > 1 && told > 0) wait_for(base + FREE, ~told & 1);  // until all have read the sums of the chunk before
      store_part(base + SUMS + rank * PART, row, half, t, part);
    }
    if (copies == 1 || copies == 5) read<0>();
    publish();
    __syncthreads();
    if (thread == 0) tell_all(base + SUMS, counter, rank);
    if (copies == 2) copy_in(base + READ_H, hr, rows, program, base + ASKED);

    // what does not wait for the others
    const long long channels = (local * C + token) * O + 4 * t, of_all = (chunk * C + token) * O + 4 * t;
    float y[16], d[16];
    uint2 v4[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      fetch(kept_o + channels + 16 * j, y + 4 * j);
      fetch(d_u2 + channels + 16 * j, d + 4 * j);
      fetch(v + of_all + 16 * j, v4[j]);
    }
    if (SLOT) {
      const float turned[4] = {by[0], by[2], by[1], by[3]};
      mixed(e1, f1, turned, total_chunks > 0);
      mixed(e2, f2, turned, total_chunks > 0);
    } else {
#pragma unroll
      for (int i = 0; i < 32; i++) e1[i] *= by[0], e2[i] *= by[0];
    }

    base = again(base + AGAIN);

    // the pull-back of the error; a number after the other, 16 of a token
    {
      float e[16];
      const float scale = normed(y);
      float e_mean = 0.0f, e_along = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float p[4], value[4], of_bias[4];
        asked(p, value, of_bias, y + 4 * j, at(base + KEYS + (n & 1) * TILE, token, t >> 1) + (t & 1) * 8, j, v4[j], gate,
              chunk * C + token, of_all);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float x = BIAS(p[i], value[i], of_bias[i]);
          e[4 * j + i] = x, e_mean += x, e_along += x * y[4 * j + i];
        }
      }
      if (NORM) e_mean = total(e_mean) * (1.0f / O), e_along = total(e_along) * (1.0f / O);
      if (BOUND) {
        const float pull = load(base + NORMS + (7 * C + token) * 4) * scale;
#pragma unroll
        for (int i = 0; i < 16; i++) d[i] += pull * (NORM ? e[i] - e_mean - y[i] * e_along : e[i]);
      }
      wait_for(counter, told >> 1 & 1);
      wait_for(base + ASKED, told & 1);
      begin();
      products<1, 1>(e1, base + SENT, base + READ_Z + half * TILE, 1);
      products<1, 1>(e2, base + SENT + J * TILE, base + READ_H + half * TILE, 1);
      if (SLOT) {
        products<1, 1>(f1, base + SENT + TILE, base + READ_Z + half * TILE, 1);
        products<1, 1>(f2, base + SENT + 3 * TILE, base + READ_H + half * TILE, 1);
      }
      products<1, 1>(e2, base + ERRORS, base + PULLED + half * J * TILE, 1);
      commit();
      float d_mean = 0.0f, d_along = 0.0f, d_error = 0.0f;  // means of d, of d y, of d u
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float sum[4];
        add_up(piece_of(base + SUMS, token, t) ^ (j << 6), sum);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float x = d[4 * j + i] + sum[i];
          d[4 * j + i] = x, d_mean += x, d_along += x * y[4 * j + i];
          d_error += x * (e[4 * j + i] - e_mean - y[4 * j + i] * e_along);
        }
      }
      if (NORM)
        d_mean = total(d_mean) * (1.0f / O), d_along = total(d_along) * (1.0f / O), d_error = total(d_error) * (scale / O);
      const bool own = token * RANKS / C == rank;  // rows that this program writes
      float of_gate = 0.0f, mean = 0.0f, along = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float p[4], value[4], of_bias[4];
        asked(p, value, of_bias, y + 4 * j, at(base + KEYS + (n & 1) * TILE, token, t >> 1) + (t & 1) * 8, j, v4[j], gate,
              chunk * C + token, of_all);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float &x = d[4 * j + i], d_e = NORM ? (x - d_mean - y[4 * j + i] * d_along) * scale : x, d_p, d_value, d_bias;
          BIAS_VJP(p[i], value[i], of_bias[i], d_e, d_p, d_value, d_bias);
          p[i] = d_p, value[i] = d_value, of_bias[i] = d_bias, of_gate += d_bias;
          x = NORM ? d_p - scale * (x * e_along + e[4 * j + i] * d_along) : d_p;
          mean += x, along += x * y[4 * j + i];
        }
        if (own) {
          *(uint2*)(d_v + of_all + 16 * j) = make_uint2(pack(value[0], value[1]), pack(value[2], value[3]));
          if (RESIDUAL) add_to(d_k + of_all + 16 * j, p[0], p[1], p[2], p[3]);
          if (GATE == 2) *(float4*)(d_gate + of_all + 16 * j) = make_float4(of_bias[0], of_bias[1], of_bias[2], of_bias[3]);
        }
      }
      if (GATE == 1 && own) {
        of_gate = total(of_gate);
        if (t == 0) d_gate[chunk * C + token] = of_gate;
      }
      if (NORM) {
        mean = total(mean) * (1.0f / O), along = total(along) * (1.0f / O);
#pragma unroll
        for (int i = 0; i < 16; i++) d[i] = (d[i] - mean - y[i] * along) * scale - scale * y[i] * d_error;
      }
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 x = pack(d[4 * j], d[4 * j + 1]), z = pack(d[4 * j + 2], d[4 * j + 3]);
        store((at(base + OUT, token, t >> 1) + (t & 1) * 8) ^ (j << 5), x, z);
        if (own) *(uint2*)(d_o + channels + 16 * j) = make_uint2(x, z);
      }
    }
    end();
    settle(e1);
    settle(e2);
    if (SLOT) {
      settle(f1);
      settle(f2);
    }
    publish();
    __syncthreads();
    if (thread < RANKS) arrive_there(neighbour(base + FREE, thread));

    base = again(base + AGAIN);

    // what it pulls at, and what that adds
    if (n > 0) {
      load_early(n - 1);
      ask((thread < 128 ? kept_o : d_u2) + (local - 1) * C * O + (thread & 127) * 32);  // a line a thread
      if (thread < 64) ask(v + (chunk - 1) * C * O + thread * 64);
      if (thread < 2) ask(lr + (chunk - 1) * C + 32 * thread);
      if (thread < 2 * J) ask(into + (chunk - 1) * J * C + 32 * thread);
    }
    float pulled[32];
    u32 slopes[16];
    begin();
    products<0, 1>(pulled, base + OUT, base + SECOND + half * TILE, 0);
    commit();
    load_fragments(base + Z + half * J * TILE, mine, lane, narrow);
    load_fragments(base + WIDE + (2 + half) * TILE, mine, lane, slopes);
    end();
    settle(pulled);
#pragma unroll
    for (int i = 0; i < 16; i++)
      narrow[i] = pack(low(narrow[i]) + pulled[2 * i] * low(slopes[i]), high(narrow[i]) + pulled[2 * i + 1] * high(slopes[i]));
    store_tile(base + Z + half * J * TILE, mine, lane, narrow);
    publish();
    group_barrier(half);
    if (n > 0) load_slopes(n - 1);
    begin();
    products<1, 1>(e1, base + KEYS + (n & 1) * TILE, base + Z + half * J * TILE, 1);
    products<1, 1>(e2, base + OUT, base + HIDDEN + half * TILE, 1);
    commit();
    if (leads) {
      copy_out(d_z, rows, columns, base + Z + half * J * TILE);
      close();
    }
    end();
    settle(e1);
    settle(e2);
    if (BOUND) {
#pragma unroll
      for (int i = 0; i < 32; i++) {
        e1[i] = clipped(e1[i]), e2[i] = clipped(e2[i]);
        if (SLOT) f1[i] = clipped(f1[i]), f2[i] = clipped(f2[i]);
      }
    }
    if (leads) read<0>();
    __syncthreads();
  }

  stack_to(grads1, row, column, e1);
  stack_to(grads2, row, column, e2);
  if (SLOT) {
    stack_to(grads1 + I * F, row, column, f1);
    stack_to(grads2 + F * O, row, column, f2);
  }
  if (copies < NONE) written();
  cluster_arrive();
  cluster_wait();
}
