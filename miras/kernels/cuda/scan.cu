// The scan of `miras.kernels._mlp.scan` for heads and chunks of 64: clusters of programs that keep a head's weights in registers.
//
// A program has 128 of the hidden width, each of its eight warps 16: rows of the transposed first matrix, of the second, and of their
// slots, as sums of matrix products. A chunk's products take one operand from there and the other from shared memory:
//
//     z^T = W1^T K^T,  h = act(z)               [F, tokens]
//     o   = h W2, summed over programs through each other's shared memory, u2 = error(o)
//     u1^T = (W2 u2^T) act'(z)                  [F, tokens]
//     W1^T = mix W1^T + (u1 c)^T K,  W2 = mix W2 + (h c)^T u2
//
// Barriers a chunk: h and W2 are there; sums are told (the cluster's); errors are there. RANKS programs make a head's width.

// Of shared memory; tiles of products stand on multiples of 1024. Slopes of the activation wait
// there too: registers are short. Barriers count sums of even and odd chunks, and their keys.
constexpr u32 CLUSTER = RANKS;
constexpr u32 KEYS = 0, ERRORS = KEYS + 2 * TILE, HIDDEN = ERRORS + TILE, SECOND = HIDDEN + 2 * TILE, STAGE = SECOND + 2 * TILE,
              SUMS = STAGE + 4 * J * TILE, SLOPES = SUMS + 2 * RANKS * PART, RATES = SLOPES + 32 * THREADS * 4,
              RATES2 = RATES + (BOUND ? J * C * 4 : 0), NORMS = RATES2 + J * C * 4, TOLD = NORMS + (BOUND ? 9 * C * 4 : 0),
              BARRIERS = TOLD + (BOUND ? 2 * RANKS * C * 4 : 0), BYTES = BARRIERS + (BOUND ? 48 : 32);
static_assert(BYTES == SHARED, "what the launch has set aside");

// The transposed rows of a warp. `STAGE` has tiles ``[64, 64]`` of both matrices, of each group's columns, of all slots.
DEVICE void stage(u32 room, u32 warp, u32 lane, const u32 (&a)[16]) {
  const u32 place = at(room + (warp >> 2) * J * TILE, (lane & 7) + (lane >> 4) * 8, 2 * (warp & 3) + (lane >> 3 & 1));
#pragma unroll
  for (int j = 0; j < 8; j += 2) store_transposed(place + j * 1024, a[2 * j], a[2 * j + 1], a[2 * j + 2], a[2 * j + 3]);
}

DEVICE void rows_of(const float* stack, u32 first, u32 g, u32 t, float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i++) x[i] = stack[(8 * (i >> 2) + 2 * t + (i & 1)) * F + first + g + 8 * (i >> 1 & 1)];
}

DEVICE void rows_to(float* stack, u32 first, u32 g, u32 t, const float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 32; i++) stack[(8 * (i >> 2) + 2 * t + (i & 1)) * F + first + g + 8 * (i >> 1 & 1)] = x[i];
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
    scan(const __grid_constant__ Map k, const unsigned short* v, const float* gate, const float* lr, const float* inverse,
         const float* mix, const float* into, const float* w1, const float* w2, float* end1, float* end2, int w1_stride,
         int w2_stride, int end1_stride, int end2_stride, const __grid_constant__ Map seen1, const __grid_constant__ Map seen2,
         float* kept_o, unsigned short* kept_u2, float* squares, int first, int count, int total_chunks) {
  extern __shared__ __align__(1024) unsigned char room[];
  const u32 base = shared_address(room), thread = threadIdx.x, lane = thread & 31, warp = warp_index(), group = warp >> 2;
  const u32 g = lane >> 2, t = lane & 3, rank = cluster_rank(), mine = warp * 16, column = rank * 128 + mine;
  const u32 slopes = base + SLOPES + thread * 16;
  const u32 copies = copies_of(lane, warp);
  const u32 token = thread >> 2;  // whose error this thread helps with: 16 channels from ``4 t`` on
  const long long b = blockIdx.x / RANKS;

  if (thread < (BOUND ? 6 : 4)) barrier(base + BARRIERS + 8 * thread, 1);
  barriers_made();
  cluster_arrive();
  float a1[32], a2[32], m1[32], m2[32];
  rows_of(w1 + b * w1_stride, column, g, t, a1);
  rows_of(w2 + b * w2_stride, column, g, t, a2);
  if (SLOT) {
    rows_of(w1 + b * w1_stride + I * F, column, g, t, m1);
    rows_of(w2 + b * w2_stride + F * O, column, g, t, m2);
  }
  cluster_wait();
  if (thread == 0) {
    arrive_expecting(base + BARRIERS + 16, TILE);
    copy_in(base + KEYS, k, (b * total_chunks + first) * C, 0, base + BARRIERS + 16);
  }

  for (int n = 0; n < count; n++) {
    const long long chunk = opaque(b * total_chunks + first + n), local = opaque(b * count + n);
    const u32 keys = base + KEYS + (n & 1) * TILE, counter = base + BARRIERS + 8 * (n & 1), parity = n >> 1 & 1;
    float by[4];
#pragma unroll
    for (int i = 0; i < J * J; i++) by[i] = mix[chunk * J * J + i];

    // answers to the keys
    float bend[32];
    {
      u32 narrow[2 * J][16];
      fragments(a1, narrow[0]);
      fragments(a2, narrow[J]);
      if (SLOT) {
        fragments(m1, narrow[1]);
        fragments(m2, narrow[3]);
      }
      wait_for(counter + 16, parity);
      begin();
#pragma unroll
      for (int s = 0; s < 4; s++) product<0>(bend, narrow[0] + 4 * s, beyond(tile(keys), 32 * s), s > 0);
      commit();
      store_tile(base + SECOND, mine, lane, narrow[J]);
#pragma unroll
      for (int i = 0; i < 2 * J; i++) stage(base + STAGE + (i / J * 2 * J + i % J) * TILE, warp, lane, narrow[i]);
    }
    uint2 value[4];
#pragma unroll
    for (int j = 0; j < 4; j++) value[j] = *(const uint2*)(v + (chunk * C + token) * O + 4 * t + 16 * j);
    float rate = 0.0f, bound = 0.0f, weight = 0.0f;
    if (BOUND) rate = lr[chunk * C + token], bound = inverse[chunk * C + token];
    if (!BOUND && thread < C * J) weight = into[chunk * J * C + thread] * lr[chunk * C + thread % C];
    end();
    settle(bend);
    u32 hidden[16];
    float squared[16];  // of the columns of this thread
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float h[4], curve;
#pragma unroll
      for (int j = 0; j < 4; j++) ACT(bend[4 * i + j], h[j], bend[4 * i + j], curve);
      store(slopes + i * THREADS * 16, bend[4 * i], bend[4 * i + 1], bend[4 * i + 2], bend[4 * i + 3]);
      hidden[2 * i] = pack(h[0], h[1]);
      hidden[2 * i + 1] = pack(h[2], h[3]);
      squared[2 * i] = h[0] * h[0] + h[2] * h[2], squared[2 * i + 1] = h[1] * h[1] + h[3] * h[3];
    }
    if (BOUND) add_columns(base + NORMS, squared, warp, lane);
    store_tile(base + HIDDEN, mine, lane, hidden);
    publish();
    __syncthreads();

    // their sum over the hidden width, told to all
    float o[16];
    begin();
#pragma unroll
    for (int s = 0; s < 8; s++)
      product<1, 1>(o, beyond(tile(base + HIDDEN), 2048 * s), beyond(tile(base + SECOND + 64 * group), 2048 * s), s > 0);
    commit();
    if (copies < 2)  // the stacks before the chunk
      copy_out(copies ? seen2 : seen1, local * J * 64, rank * 128, base + STAGE + copies * 2 * J * TILE), close();
    if (copies == 2 && n + 1 < count) {
      const u32 next = base + BARRIERS + 16 + 8 * (~n & 1);
      arrive_expecting(next, TILE);
      copy_in(base + KEYS + (~n & 1) * TILE, k, (chunk + 1) * C, 0, next);
    }
    if (!BOUND && thread < C * J) store(base + RATES + thread * 4, weight);
    end();
    settle(o);
    const u32 sums = base + SUMS + (n & 1) * (RANKS * PART);
    store_part(sums + rank * PART, (warp & 3) * 16 + g, group, t, o);
    if (BOUND && thread < C) store(sums + rank * PART + TOKEN_SUMS + thread * 4, column_sum(base + NORMS, thread, 8));
    publish();
    __syncthreads();
    if (thread == 0) tell_all(sums, counter, rank);

    // what does not wait for the others
    u32 wide[16];
    fragments(a2, wide);
    if (SLOT) {
      mixed(a1, m1, by, total_chunks > 0);
      mixed(a2, m2, by, total_chunks > 0);
    } else {
#pragma unroll
      for (int i = 0; i < 32; i++) a1[i] *= by[0], a2[i] *= by[0];
    }
    wait_for(counter, parity);

    // errors there
    float y[16], e[16];
#pragma unroll
    for (int j = 0; j < 4; j++) add_up(piece_of(sums, token, t) ^ (j << 6), y + 4 * j);
    const bool own = token * RANKS / C == rank;  // rows that this program writes
    if (own) {
#pragma unroll
      for (int j = 0; j < 4; j++)
        *(float4*)(kept_o + (local * C + token) * O + 16 * j + 4 * t) =
            make_float4(y[4 * j], y[4 * j + 1], y[4 * j + 2], y[4 * j + 3]);
    }
    const float scale = normed(y);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      float p[4], own_value[4], of_bias[4];
      asked(p, own_value, of_bias, y + 4 * j, at(keys, token, t >> 1) + (t & 1) * 8, j, value[j], gate, chunk * C + token,
            (chunk * C + token) * O + 4 * t);
#pragma unroll
      for (int i = 0; i < 4; i++) e[4 * j + i] = BIAS(p[i], own_value[i], of_bias[i]);
    }
    normed_vjp(e, y, scale);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 x = pack(e[4 * j], e[4 * j + 1]), z = pack(e[4 * j + 2], e[4 * j + 3]);
      store((at(base + ERRORS, token, t >> 1) + (t & 1) * 8) ^ (j << 5), x, z);
      if (own) *(uint2*)(kept_u2 + (local * C + token) * O + 16 * j + 4 * t) = make_uint2(x, z);
    }
    if (BOUND) {
      float h_square = 0.0f, u2_square = 0.0f;
      const float k_square = key_square(keys, token, t);
#pragma unroll
      for (int r = 0; r < RANKS; r++) h_square += load(sums + r * PART + TOKEN_SUMS + token * 4);
#pragma unroll
      for (int i = 0; i < 16; i++) u2_square += e[i] * e[i];
      u2_square = total(u2_square);
      const float rate2 = bounded_rate(rate, bound, h_square * u2_square);
      if (t < J) store(base + RATES2 + (t * C + token) * 4, into[(chunk * J + t) * C + token] * rate2);
      if (t == 0) {
        store(base + NORMS + (8 * C + token) * 4, k_square);
        if (own) {
          float* to = squares + local * SQUARES + token;
          to[0] = h_square, to[2 * C] = u2_square, to[4 * C] = rate2;
        }
      }
    }
    if (copies < 2) read<0>();
    publish();
    __syncthreads();

    // what they write
    float u1[32];
    begin();
#pragma unroll
    for (int s = 0; s < 4; s++) product<0>(u1, wide + 4 * s, beyond(tile(base + ERRORS), 32 * s), s > 0);
    commit();
    u32 right[J][16];
#pragma unroll
    for (int slot = 0; slot < J; slot++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float c0, c1;
        load(base + RATES2 + (slot * C + 8 * j + 2 * t) * 4, c0, c1);
        right[slot][2 * j] = pack(low(hidden[2 * j]) * c0, high(hidden[2 * j]) * c1);
        right[slot][2 * j + 1] = pack(low(hidden[2 * j + 1]) * c0, high(hidden[2 * j + 1]) * c1);
      }
    }
    begin();
#pragma unroll
    for (int s = 0; s < 4 * J; s++)
      product<1>(s < 4 ? a2 : m2, right[s >> 2] + 4 * (s & 3), beyond(tile(base + ERRORS), 2048 * (s & 3)), 1);
    commit();
    if (BOUND) {  // what follows has branches, across which no products may be under way
      end();
      settle(a2);
      if (SLOT) settle(m2);
    } else {
      end_all_but_one();
    }
    settle(u1);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float x[4];
      load(slopes + i * THREADS * 16, x[0], x[1], x[2], x[3]);
#pragma unroll
      for (int j = 0; j < 4; j++) u1[4 * i + j] *= x[j];
      squared[2 * i] = u1[4 * i] * u1[4 * i] + u1[4 * i + 2] * u1[4 * i + 2];
      squared[2 * i + 1] = u1[4 * i + 1] * u1[4 * i + 1] + u1[4 * i + 3] * u1[4 * i + 3];
    }
    if (BOUND) {
      add_columns(base + NORMS, squared, warp, lane);
      __syncthreads();
      if (thread < C) {
        const u32 told = base + TOLD + (n & 1) * RANKS * C * 4;
        const float u1_square = told_sum(told, counter + 32, parity, rank, thread, C, column_sum(base + NORMS, thread, 8));
        const float square = load(base + NORMS + (8 * C + thread) * 4) * u1_square;
        const float rate1 = bounded_rate(lr[chunk * C + thread], inverse[chunk * C + thread], square);
#pragma unroll
        for (int slot = 0; slot < J; slot++)
          store(base + RATES + (slot * C + thread) * 4, into[(chunk * J + slot) * C + thread] * rate1);
        if (thread * RANKS / C == rank) {
          float* to = squares + local * SQUARES + thread;
          to[C] = u1_square, to[3 * C] = rate1;
        }
      }
      __syncthreads();
    }
    u32 left[J][16];
#pragma unroll
    for (int slot = 0; slot < J; slot++) {
#pragma unroll
      for (int j = 0; j < 8; j++) {
        float c0, c1;
        load(base + RATES + (slot * C + 8 * j + 2 * t) * 4, c0, c1);
        left[slot][2 * j] = pack(u1[4 * j] * c0, u1[4 * j + 1] * c1);
        left[slot][2 * j + 1] = pack(u1[4 * j + 2] * c0, u1[4 * j + 3] * c1);
      }
    }
    begin();
#pragma unroll
    for (int s = 0; s < 4 * J; s++)
      product<1>(s < 4 ? a1 : m1, left[s >> 2] + 4 * (s & 3), beyond(tile(keys), 2048 * (s & 3)), 1);
    commit();
    end();
    settle(a1);
    settle(a2);
    if (SLOT) {
      settle(m1);
      settle(m2);
    }
  }

  if (end1) {
    rows_to(end1 + b * end1_stride, column, g, t, a1);
    rows_to(end2 + b * end2_stride, column, g, t, a2);
    if (SLOT) {
      rows_to(end1 + b * end1_stride + I * F, column, g, t, m1);
      rows_to(end2 + b * end2_stride + F * O, column, g, t, m2);
    }
  }
  if (copies < 2) written();
  cluster_arrive();
  cluster_wait();
}
