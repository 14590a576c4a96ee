// Backward through what queries read, as `miras.kernels._mlp_read_backward.read_backward` has it, for heads and chunks of 64. Programs stay
// for many chunks; two groups of four warps take tiles of 64 of the hidden width in turns.
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
                  const __grid_constant__ Map d_zr, float* d_u2, float* d_rates, const __grid_constant__ Map sent, int chunks,
                  int first, int count, int total_chunks) {
  extern __shared__ __align__(1024) unsigned char room[];
  const u32 base = shared_address(room), thread = threadIdx.x, lane = thread & 31, warp = warp_index(), half = warp >> 2;
  const u32 g = lane >> 2, t = lane & 3, mine = (warp & 3) * 16, row = mine + g, own = base + OWN + half * OF_A_GROUP;
  const bool leads = (thread & 127) == 0;  // copies of its group
  const u32 token = thread >> 2;           // whose gradient this thread helps with: 16 channels from ``4 t`` on

  if (thread < 3) barrier(base + BARRIERS + 8 * thread, 1);
  barriers_made();
  __syncthreads();

  auto load_stacks = [&](int local, int i) {
    const u32 counter = base + BARRIERS + 8 + 8 * half, column = 64 * (2 * i + half);
    arrive_expecting(counter, 2 * J * TILE);
    copy_in(own, seen1, local * C * J, column, counter);
    copy_in(own + 2 * TILE, seen2, local * C * J, column, counter);
  };
  auto load_tokens = [&](int local) {
    const u32 token = ((long long)(local / count) * total_chunks + first + local % count) * C;
    arrive_expecting(base + BARRIERS, 3 * TILE);
    copy_in(base + QUERIES, q, token, 0, base + BARRIERS);
    copy_in(base + KEYS, k, token, 0, base + BARRIERS);
    copy_in(base + ERRORS, kept_u2, local * C, 0, base + BARRIERS);
  };
  const int every = gridDim.x, begins = blockIdx.x;
  if (thread == 0 && begins < chunks) load_tokens(begins);
  if (leads && begins < chunks) load_stacks(begins, 0);

  u32 step = 0, turn = 0;
#pragma unroll 1
  for (int local = begins; local < chunks; local += every, turn++) {
    const long long chunk = (long long)(local / count) * total_chunks + first + local % count;
    const u32 place = local * C;

    // the gradient of answers before their norm; what the reverse scan multiplies with what was read
    {
      const long long channels = (chunk * C + token) * O + 4 * t;
      uint2 of_answers[4];
      float d[16], y[16], reads[J];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        fetch(d_answer + channels + 16 * j, of_answers[j]);
        if (NORM) fetch(out + channels + 16 * j, y + 4 * j);
      }
#pragma unroll
      for (int j = 0; j < J; j++) reads[j] = rows[(chunk * J + j) * C + token];
      if (leads) read<0>();  // what has been written of the chunk before
#pragma unroll
      for (int j = 0; j < 4; j++) {
        d[4 * j] = low(of_answers[j].x), d[4 * j + 1] = high(of_answers[j].x);
        d[4 * j + 2] = low(of_answers[j].y), d[4 * j + 3] = high(of_answers[j].y);
      }
      if (NORM) normed_vjp(d, y, normed(y));
      const u32 spot = at(0, token, t >> 1) + (t & 1) * 8;
      wait_for(base + BARRIERS, turn & 1);
      __syncthreads();
#pragma unroll
      for (int slot = 0; slot < J; slot++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
          u32 x, z;
          load(base + QUERIES + (spot ^ (j << 5)), x, z);
          const float weight = reads[slot];
          const u32 to = base + OWN + H + slot * TILE + (spot ^ (j << 5));
          store(to, pack(low(x) * weight, high(x) * weight), pack(low(z) * weight, high(z) * weight));
          store(to + J * TILE, pack(d[4 * j] * weight, d[4 * j + 1] * weight), pack(d[4 * j + 2] * weight, d[4 * j + 3] * weight));
        }
      }
#pragma unroll
      for (int j = 0; j < 4; j++)
        store(base + GRADIENTS + (spot ^ (j << 5)), pack(d[4 * j], d[4 * j + 1]), pack(d[4 * j + 2], d[4 * j + 3]));
    }
    Weights<16> by;
    read_weights(by, pairs + chunk * C * C, rates_of(lr, squares, chunk, local, half), row, t);
    publish();
    __syncthreads();
    if (thread == 0) {
      copy_out(sent, place * 2 * J, 0, base + OWN + H);
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
      weighted(x, by);
      fragments(x, narrow);
      store_tile(base + (half ? SCORES : READS), mine, lane, narrow);
    }
    publish();
    __syncthreads();

    const int next = local + every;
    if (next < chunks) {  // a line a thread
      const long long later = ((long long)(next / count) * total_chunks + first + next % count) * C;
      if (thread < 64) ask(d_answer + later * O + thread * 64), ask(pairs + later * C + thread * 64);
      if (NORM && thread < 128) ask(out + later * O + thread * 32);
      if (thread == 128) ask(q, later, 0), ask(k, later, 0), ask(kept_u2, next * C, 0);
    }
    float scores[32], row_sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};  // of both slots, of both rows
#pragma unroll
    for (int i = 0; i < 32; i++) scores[i] = 0.0f;
    float weight[2 * J];
#pragma unroll
    for (int i = 0; i < 2 * J; i++) weight[i] = rows[(chunk * J + (i >> 1)) * C + row + 8 * (i & 1)];

#pragma unroll 1
    for (int i = 0; i < RANKS; i++, step++) {
      const u32 column = 64 * (2 * i + half);
      float zr[32], bend[32];
      wait_for(base + BARRIERS + 8 + 8 * half, step & 1);
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
      if (leads) {
        if (i + 1 < RANKS) {
          load_stacks(local, i + 1);
        } else if (next < chunks) {
          load_stacks(next, 0);
        }
      }
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

    // sums over both groups' tiles, each of which has half of the columns of scores from here on
#pragma unroll
    for (int i = 0; i < 2 * J; i++) {
      const float sum = total(row_sums[i]);
      if (t == 0) store(base + ROWS + ((half * J + (i >> 1)) * C + row + 8 * (i & 1)) * 4, sum);
    }
    Weights<8> by_errors;
    read_weights(by_errors, pairs + chunk * C * C + 32 * half, rates_of(lr, squares, chunk, local, 1) + 32 * half, row, t);
    const u32 gift = (thread & 127) * 16;  // in the place of h
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float* x = scores + 4 * i;
      if (half) {
        store(own + H + gift + i * 2048, x[0], x[1], x[2], x[3]);
      } else {
        store(own + H + gift + i * 2048, x[16], x[17], x[18], x[19]);
      }
    }
    __syncthreads();
    if (thread < J * C) d_rows[chunk * J * C + thread] = load(base + ROWS + thread * 4) + load(base + ROWS + (J * C + thread) * 4);
    float x[16], in_columns[8];
    begin();
    products_of_a_side<0, 0>(x, base + GRADIENTS, base + ERRORS, half);
    commit();
    float mine_of_scores[16];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float more[4];
      load(base + OWN + (1 - half) * OF_A_GROUP + H + gift + i * 2048, more[0], more[1], more[2], more[3]);
#pragma unroll
      for (int j = 0; j < 4; j++) mine_of_scores[4 * i + j] = (half ? scores[16 + 4 * i + j] : scores[4 * i + j]) + more[j];
    }
    end();
    settle(x);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float2 rate = by_errors.rates[i >> 1];
      const float first_pair = low(by_errors.pairs[i]), second_pair = high(by_errors.pairs[i]);
      float &first_score = mine_of_scores[2 * i], &second_score = mine_of_scores[2 * i + 1];
      const float first_d = x[2 * i] * first_score, second_d = x[2 * i + 1] * second_score;
      *at_place(d_pairs + chunk * C * C + 32 * half, row, t, i) = pack(-first_d * rate.x, -second_d * rate.y);
      narrow[i] = pack(-(first_pair * rate.x) * first_score, -(second_pair * rate.y) * second_score);
      if (i & 1) {
        in_columns[i - 1] += first_d * first_pair, in_columns[i] += second_d * second_pair;
      } else {
        in_columns[i] = first_d * first_pair, in_columns[i + 1] = second_d * second_pair;
      }
    }
    add_columns(base + COLUMNS + 32 * half * 4, in_columns, warp & 3, lane);
    const u32 to = at(base + READS, mine + (lane & 15), 4 * half + (lane >> 4));
#pragma unroll
    for (int j = 0; j < 4; j += 2) store_matrices(to ^ (j << 4), narrow[2 * j], narrow[2 * j + 1], narrow[2 * j + 2], narrow[2 * j + 3]);
    publish();
    __syncthreads();
    if (thread == 0 && next < chunks) load_tokens(next);
    begin();
    products_of_a_side<1, 1>(x, base + READS, base + GRADIENTS, half);
    commit();
    if (thread < C) d_rates[((long long)local * 2 + 1) * C + thread] = -column_sum(base + COLUMNS, thread, 4);
    end();
    settle(x);
#pragma unroll
    for (int i = 0; i < 8; i++)
      *(float2*)(d_u2 + ((long long)local * C + row + 8 * (i & 1)) * O + 32 * half + 8 * (i >> 1) + 2 * t) =
          make_float2(x[2 * i], x[2 * i + 1]);
  }
  if (leads) written();
}
