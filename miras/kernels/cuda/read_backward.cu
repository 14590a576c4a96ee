// Backward through what queries read, as `miras.kernels._mlp_read_backward.read_backward` has it, for heads and chunks of 64: a program a
// chunk, whose two groups of four warps take tiles of 64 of the hidden width in turns.
//
//     z = K W1,  h = act(z),  u1 = (u2 W2^T) act'(z),  turn = (u2 W2^T) act''(z)
//     zr = sum rows_j (Q W1_j) + P u1,  hr = act(zr)          P = -pairs s (Q K^T)
//     hr' = sum rows_j (d W2_j^T) + S h,  zr' = hr' act'(zr)  S = -pairs s (d u2^T)
//     h' = S^T hr,  u1' = P^T zr'
//     u2' = (-pairs s (hr h^T))^T d, and the gradients of rows, pairs and rates
//
// Everything with a hidden width is written for the reverse scan, by the copy engine.

// Tiles in shared memory: queries, keys, errors, d, P and S; then of each group what it has of the stacks (2 J at most) and what it writes.
constexpr u32 CLUSTER = 1;
constexpr u32 QUERIES = 0, KEYS = TILE, ERRORS = 2 * TILE, GRADIENTS = 3 * TILE, READS = 4 * TILE, SCORES = 5 * TILE,
              OWN = 6 * TILE, OF_A_GROUP = 10 * TILE, H = 4 * TILE, SLOPE = H + TILE, TURN = SLOPE + TILE, U1 = TURN + TILE,
              HR = U1 + TILE, DZ = HR + TILE, ROWS = OWN + 2 * OF_A_GROUP, COLUMNS = ROWS + 4 * C * 4,
              BARRIERS = COLUMNS + 4 * C * 4, BYTES = BARRIERS + 24;
static_assert(BYTES == SHARED, "what the launch has set aside");

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    read_backward(const __grid_constant__ Map q, const __grid_constant__ Map k, const float* lr, const float* rows,
                  const unsigned short* pairs, const float* squares, const float* out, const unsigned short* d_answer,
                  const __grid_constant__ Map seen1, const __grid_constant__ Map seen2, const __grid_constant__ Map kept_u2,
                  float* d_rows, unsigned short* d_pairs, const __grid_constant__ Map h_out,
                  const __grid_constant__ Map slope_out, const __grid_constant__ Map turn_out, const __grid_constant__ Map u1_out,
                  const __grid_constant__ Map hr_out, const __grid_constant__ Map d_h, const __grid_constant__ Map d_u1,
                  const __grid_constant__ Map d_zr, float* d_u2, float* d_rates, const __grid_constant__ Map sent, int first,
                  int count, int total_chunks) {
  extern __shared__ __align__(1024) unsigned char room[];
  const u32 base = shared_address(room), thread = threadIdx.x, lane = thread & 31, warp = warp_index(), half = warp >> 2;
  const u32 g = lane >> 2, t = lane & 3, mine = (warp & 3) * 16, row = mine + g, own = base + OWN + half * OF_A_GROUP;
  const bool leads = (thread & 127) == 0;  // copies of its group
  const u32 token = thread >> 2;           // whose gradient this thread helps with: 16 channels from ``4 t`` on
  const long long b = blockIdx.x / count, n = blockIdx.x % count, chunk = b * total_chunks + first + n, local = b * count + n;
  const u32 place = local * C;

  if (thread < 3) barrier(base + BARRIERS + 8 * thread, 1);
  barriers_made();
  __syncthreads();
  auto load_stacks = [&](u32 column) {
    const u32 counter = base + BARRIERS + 8 + 8 * half;
    arrive_expecting(counter, 2 * J * TILE);
#pragma unroll
    for (int i = 0; i < J; i++) {
      copy_in(own + i * TILE, seen1, place * J + 64 * i, column, counter);
      copy_in(own + (2 + i) * TILE, seen2, place * J + 64 * i, column, counter);
    }
  };
  if (thread == 0) {
    arrive_expecting(base + BARRIERS, 3 * TILE);
    copy_in(base + QUERIES, q, chunk * C, 0, base + BARRIERS);
    copy_in(base + KEYS, k, chunk * C, 0, base + BARRIERS);
    copy_in(base + ERRORS, kept_u2, place, 0, base + BARRIERS);
  }
  if (leads) load_stacks(64 * half);

  // the gradient of answers before their norm; what the reverse scan multiplies with what was read
  {
    const long long channels = (chunk * C + token) * O + 4 * t;
    float d[16];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const uint2 x = *(const uint2*)(d_answer + channels + 16 * j);
      d[4 * j] = low(x.x), d[4 * j + 1] = high(x.x), d[4 * j + 2] = low(x.y), d[4 * j + 3] = high(x.y);
    }
    if (NORM) {
      float y[16];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float4 x = *(const float4*)(out + channels + 16 * j);
        y[4 * j] = x.x, y[4 * j + 1] = x.y, y[4 * j + 2] = x.z, y[4 * j + 3] = x.w;
      }
      normed_vjp(d, y, normed(y));
    }
    const u32 spot = at(0, token, t >> 1) + (t & 1) * 8;
    wait_for(base + BARRIERS, 0);
#pragma unroll
    for (int slot = 0; slot < J; slot++) {
      const float weight = rows[(chunk * J + slot) * C + token];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        u32 x, z;
        load(base + QUERIES + (spot ^ (j << 5)), x, z);
        const u32 to = base + OWN + H + slot * TILE + (spot ^ (j << 5));
        store(to, pack(low(x) * weight, high(x) * weight), pack(low(z) * weight, high(z) * weight));
        store(to + J * TILE, pack(d[4 * j] * weight, d[4 * j + 1] * weight), pack(d[4 * j + 2] * weight, d[4 * j + 3] * weight));
      }
    }
#pragma unroll
    for (int j = 0; j < 4; j++)
      store(base + GRADIENTS + (spot ^ (j << 5)), pack(d[4 * j], d[4 * j + 1]), pack(d[4 * j + 2], d[4 * j + 3]));
  }
  publish();
  __syncthreads();
  if (thread == 0) {
#pragma unroll
    for (int i = 0; i < 2 * J; i++) copy_out(sent, place * 2 * J + 64 * i, 0, base + OWN + H + i * TILE);
    close();
  }

  // scores of queries and keys in one group, of gradients and errors in the other
  u32 narrow[16];
  {
    float x[32];
    begin();
    products<0, 0>(x, base + (half ? GRADIENTS : QUERIES), base + (half ? ERRORS : KEYS), 0);
    commit();
    end();
    settle(x);
    weighted(x, pairs + chunk * C * C, rates_of(lr, squares, chunk, local, half), row, t);
    fragments(x, narrow);
    store_tile(base + (half ? SCORES : READS), mine, lane, narrow);
  }
  publish();
  __syncthreads();

  float scores[32], row_sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of both slots, of both rows
#pragma unroll
  for (int i = 0; i < 32; i++) scores[i] = 0.0f;
  float weight[2 * J];
#pragma unroll
  for (int i = 0; i < 2 * J; i++) weight[i] = rows[(chunk * J + (i >> 1)) * C + row + 8 * (i & 1)];

#pragma unroll 1
  for (int i = 0; i < RANKS; i++) {
    const u32 column = 64 * (2 * i + half);
    float zr[32], bend[32];
    wait_for(base + BARRIERS + 8 + 8 * half, i & 1);
    {
      float z[32], pulled[32];
      u32 slopes[16], turns[16], errors[16];
      begin();
      products<0, 1>(z, base + KEYS, own, 0);
      products<0, 1>(pulled, base + ERRORS, own + 2 * TILE, 0);
      products<0, 1>(zr, base + QUERIES, own, 0);
      if (SLOT) products<0, 1>(bend, base + QUERIES, own + TILE, 0);
      commit();
      end();
      settle(z), settle(pulled), settle(zr);
      if (SLOT) settle(bend);
#pragma unroll
      for (int e = 0; e < 32; e++) {
        zr[e] *= weight[e >> 1 & 1];
        if (SLOT) zr[e] += bend[e] * weight[2 * J - 2 + (e >> 1 & 1)];
      }
#pragma unroll
      for (int e = 0; e < 16; e++) {
        float h[2], slope[2], curve[2];
        ACT(z[2 * e], h[0], slope[0], curve[0]);
        ACT(z[2 * e + 1], h[1], slope[1], curve[1]);
        narrow[e] = pack(h[0], h[1]);
        slopes[e] = pack(slope[0], slope[1]);
        turns[e] = pack(pulled[2 * e] * curve[0], pulled[2 * e + 1] * curve[1]);
        errors[e] = pack(pulled[2 * e] * slope[0], pulled[2 * e + 1] * slope[1]);
      }
      if (leads) read<0>();
      group_barrier(half);  // what has been written before has left
      store_tile(own + H, mine, lane, narrow);
      store_tile(own + SLOPE, mine, lane, slopes);
      store_tile(own + TURN, mine, lane, turns);
      store_tile(own + U1, mine, lane, errors);
    }
    publish();
    group_barrier(half);
    if (leads) {
      copy_out(h_out, place, column, own + H);
      copy_out(slope_out, place, column, own + SLOPE);
      copy_out(turn_out, place, column, own + TURN);
      copy_out(u1_out, place, column, own + U1);
      close();
    }
    begin();
    products<0, 1>(zr, base + READS, own + U1, 1);
    commit();
    end();
    settle(zr);
#pragma unroll
    for (int e = 0; e < 32; e++) {
      float curve;
      ACT(zr[e], zr[e], bend[e], curve);
    }
    fragments(zr, narrow);
    store_tile(own + HR, mine, lane, narrow);
    publish();
    group_barrier(half);
    if (leads) {
      copy_out(hr_out, place, column, own + HR);
      close();
    }
    float d[32];
    {
      float of_h[32], more[32];
      begin();
      products<0, 1>(d, base + GRADIENTS, own + 2 * TILE, 0);
      if (SLOT) products<0, 1>(more, base + GRADIENTS, own + 3 * TILE, 0);
      products<0, 0>(scores, own + HR, own + H, 1);
      products<1, 1>(of_h, base + SCORES, own + HR, 0);
      commit();
      end();
      settle(d), settle(of_h), settle(scores);
      if (SLOT) settle(more);
#pragma unroll
      for (int e = 0; e < 32; e++) {
        row_sums[e >> 1 & 1] += zr[e] * d[e];
        d[e] *= weight[e >> 1 & 1];
        if (SLOT) {
          row_sums[2 + (e >> 1 & 1)] += zr[e] * more[e];
          d[e] += more[e] * weight[2 * J - 2 + (e >> 1 & 1)];
        }
      }
      fragments(of_h, narrow);
    }
    if (leads) read<1>();
    group_barrier(half);  // slopes and turns have left, all products with stacks have ended
    if (leads && i + 1 < RANKS) load_stacks(column + 128);
    store_tile(own + SLOPE, mine, lane, narrow);
    begin();
    products<0, 1>(d, base + SCORES, own + H, 1);
    commit();
    end();
    settle(d);
#pragma unroll
    for (int e = 0; e < 32; e++) d[e] *= bend[e];
    fragments(d, narrow);
    store_tile(own + DZ, mine, lane, narrow);
    publish();
    group_barrier(half);
    if (leads) {
      copy_out(d_h, place, column, own + SLOPE);
      copy_out(d_zr, place, column, own + DZ);
      close();
    }
    begin();
    products<1, 1>(d, base + READS, own + DZ, 0);
    commit();
    end();
    settle(d);
    fragments(d, narrow);
    store_tile(own + TURN, mine, lane, narrow);
    publish();
    group_barrier(half);
    if (leads) {
      copy_out(d_u1, place, column, own + TURN);
      close();
    }
  }

  // sums over both groups' tiles
#pragma unroll
  for (int i = 0; i < 2 * J; i++) {
    const float sum = total(row_sums[i]);
    if (t == 0) store(base + ROWS + ((half * J + (i >> 1)) * C + row + 8 * (i & 1)) * 4, sum);
  }
  const u32 theirs = base + OWN + OF_A_GROUP + (thread & 127) * 16;
  if (half == 1) {
#pragma unroll
    for (int i = 0; i < 8; i++) store(theirs + i * 2048, scores[4 * i], scores[4 * i + 1], scores[4 * i + 2], scores[4 * i + 3]);
  }
  __syncthreads();
  if (half == 1) {
    if (thread - 128 < J * C) {
      const u32 which = thread - 128;
      d_rows[chunk * J * C + which] = load(base + ROWS + which * 4) + load(base + ROWS + (J * C + which) * 4);
    }
  } else {
    float x[32];
    begin();
    products<0, 0>(x, base + GRADIENTS, base + ERRORS, 0);
    commit();
    float in_columns[16];  // of two columns of each of eight tiles
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float more[4];
      load(theirs + i * 2048, more[0], more[1], more[2], more[3]);
#pragma unroll
      for (int j = 0; j < 4; j++) scores[4 * i + j] += more[j];
    }
    end();
    settle(x);
    const unsigned short* own_pairs = pairs + chunk * C * C;
    const float* rates = rates_of(lr, squares, chunk, local, 1);
#pragma unroll
    for (int i = 0; i < 16; i++) {
      const float2 pair = at_place(own_pairs, row, t, i), rate = *(const float2*)(rates + 8 * (i >> 1) + 2 * t);
      x[2 * i] *= scores[2 * i], x[2 * i + 1] *= scores[2 * i + 1];
      *(u32*)(d_pairs + chunk * C * C + (row + 8 * (i & 1)) * C + 8 * (i >> 1) + 2 * t) =
          pack(-x[2 * i] * rate.x, -x[2 * i + 1] * rate.y);
      const float first_column = x[2 * i] * pair.x, second_column = x[2 * i + 1] * pair.y;
      if (i & 1) {
        in_columns[i - 1] += first_column, in_columns[i] += second_column;
      } else {
        in_columns[i] = first_column, in_columns[i + 1] = second_column;
      }
    }
    add_columns(base + COLUMNS, in_columns, warp, lane);
    weighted(scores, own_pairs, rates, row, t);
    fragments(scores, narrow);
    store_tile(base + READS, mine, lane, narrow);
    publish();
    group_barrier(0);
    begin();
    products<1, 1>(x, base + READS, base + GRADIENTS, 0);
    commit();
    if (thread < C) d_rates[(local * 2 + 1) * C + thread] = -column_sum(base + COLUMNS, thread, 4);
    end();
    settle(x);
#pragma unroll
    for (int i = 0; i < 16; i++)
      *(float2*)(d_u2 + (local * C + row + 8 * (i & 1)) * O + 8 * (i >> 1) + 2 * t) = make_float2(x[2 * i], x[2 * i + 1]);
  }
  if (leads) written();
}
