// Backward through what queries read, as `miras.kernels._mlp.read_backward.read_backward` has it, for heads and chunks of 64. Programs stay
// for many chunks; two groups of four warps take tiles of 64 of the hidden width in turns.
//
//     z = K W1,  h = act(z),  u1 = (u2 W2^T) act'(z),  turn = (u2 W2^T) act''(z)
//     zr = sum rows_j (Q W1_j) + P u1,  hr = act(zr)          P = -pairs s (Q K^T)
//     hr' = sum rows_j (d W2_j^T) + S h,  zr' = hr' act'(zr)  S = -pairs s (d u2^T)
//     h' = S^T hr,  u1' = P^T zr'
//     u2' = (-pairs s (hr h^T))^T d, and the gradients of rows, pairs and rates
//
// Everything with a hidden width is written for the reverse scan, by the copy engine.

// Tiles in shared memory: queries, keys, errors of two chunks, d, P and S; then of each group what it has of the stacks (2 J at most) and
// what it writes. Barriers count tokens, both groups' stacks, and that both have multiplied with queries and keys.
constexpr u32 CLUSTER = 1;
constexpr u32 QUERIES = 0, KEYS = TILE, ERRORS = 2 * TILE, GRADIENTS = 4 * TILE, READS = 5 * TILE, SCORES = 6 * TILE,
              OWN = 7 * TILE, OF_A_GROUP = 10 * TILE, H = 4 * TILE, SLOPE = H + TILE, TURN = SLOPE + TILE, U1 = TURN + TILE,
              HR = U1 + TILE, DZ = HR + TILE, ROWS = OWN + 2 * OF_A_GROUP, COLUMNS = ROWS + 4 * C * 4,
              BARRIERS = COLUMNS + 4 * C * 4, FREE = BARRIERS + 24, BYTES = BARRIERS + 32;
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
  const u32 copies = copies_of(lane, warp & 3);  // of its group
  const u32 token = thread >> 2;                 // whose gradient this thread helps with: 16 channels from ``4 t`` on

  if (thread < 4) barrier(base + BARRIERS + 8 * thread, thread == 3 ? 2 : 1);
  barriers_made();
  __syncthreads();

  auto load_stacks = [&](int local, int i) {
    const u32 counter = base + BARRIERS + 8 + 8 * half, column = 64 * (2 * i + half);
    if (copies == 0) arrive_expecting(counter, 2 * J * TILE);
    if (copies < 2) copy_in(own + copies * 2 * TILE, copies ? seen2 : seen1, local * C * J, column, counter);
  };
  auto load_tokens = [&](int local, u32 turn) {
    const u32 token = chunk_of(local, first, count, total_chunks) * C;
    arrive_expecting(base + BARRIERS, 3 * TILE);
    copy_in(base + QUERIES, q, token, 0, base + BARRIERS);
    copy_in(base + KEYS, k, token, 0, base + BARRIERS);
    copy_in(base + ERRORS + (turn & 1) * TILE, kept_u2, local * C, 0, base + BARRIERS);
  };
  // of the token of this thread: gradients of answers, answers before their norm, and what was read with
  uint2 d_answers[4];
  float y[16], reads[J];
  auto fetch_answers = [&](int local) {
    const long long token_here = chunk_of(local, first, count, total_chunks) * C + token;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      fetch(d_answer + token_here * O + 4 * t + 16 * j, d_answers[j]);
      if (NORM) fetch(out + token_here * O + 4 * t + 16 * j, y + 4 * j);
    }
    const long long chunk = token_here / C;
#pragma unroll
    for (int j = 0; j < J; j++) reads[j] = rows[(chunk * J + j) * C + token];
  };
  const int every = gridDim.x, begins = blockIdx.x;
  if (thread == 0 && begins < chunks) load_tokens(begins, 0);
  if (begins < chunks) load_stacks(begins, 0);
  if (begins < chunks) fetch_answers(begins);

  u32 step = 0, turn = 0;
#pragma unroll 1
  for (int local = begins; local < chunks; local += every, turn++) {
    const long long chunk = chunk_of(local, first, count, total_chunks);
    const u32 place = local * C, errors = base + ERRORS + (turn & 1) * TILE;

    // the gradient of answers before their norm; what the reverse scan multiplies with what was read
    {
      float d[16];
      if (copies < NONE) read<0>();  // what has been written of the chunk before
#pragma unroll
      for (int j = 0; j < 4; j++) {
        d[4 * j] = low(d_answers[j].x), d[4 * j + 1] = high(d_answers[j].x);
        d[4 * j + 2] = low(d_answers[j].y), d[4 * j + 3] = high(d_answers[j].y);
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
          store(to + J * TILE, pack(d[4 * j] * weight, d[4 * j + 1] * weight),
                pack(d[4 * j + 2] * weight, d[4 * j + 3] * weight));
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
      products<0, 0>(x, base + (half ? GRADIENTS : QUERIES), half ? errors : base + KEYS, 0);
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
      const long long later = chunk_of(next, first, count, total_chunks) * C;
      if (thread < 64) ask(d_answer + later * O + thread * 64), ask(pairs + later * C + thread * 64);
      if (NORM && thread < 128) ask(out + later * O + thread * 32);
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
      {  // what gradients of hr begin with waits in the places of hr and z': nobody but their warp has to do with them
        float more[32];
        begin();
        products<0, 1>(zr, base + GRADIENTS, own + 2 * TILE, 0);
        if (SLOT) products<0, 1>(more, base + GRADIENTS, own + 3 * TILE, 0);
        commit();
        if (copies < NONE) read<0>();
        group_barrier(half);  // what has been written before has left
        end();
        settle(zr);
        fragments(zr, narrow);
        store_tile(own + DZ, mine, lane, narrow);
        if (SLOT) {
          settle(more);
          fragments(more, narrow);
          store_tile(own + HR, mine, lane, narrow);
        }
      }
      {
        float z[32], pulled[32];
        u32 slopes[16], turns[16], of_u1[16];
        begin();
        products<0, 1>(z, base + KEYS, own, 0);
        products<0, 1>(pulled, errors, own + 2 * TILE, 0);
        products<0, 1>(zr, base + QUERIES, own, 0);
        if (SLOT) products<0, 1>(bend, base + QUERIES, own + TILE, 0);
        commit();
        end();
        settle(z), settle(pulled), settle(zr);
        if (SLOT) settle(bend);
        by_rows(zr, bend, weight);
#pragma unroll
        for (int e = 0; e < 16; e++) {
          float h[2], slope[2], curve[2];
          ACT(z[2 * e], h[0], slope[0], curve[0]);
          ACT(z[2 * e + 1], h[1], slope[1], curve[1]);
          narrow[e] = pack(h[0], h[1]);
          slopes[e] = pack(slope[0], slope[1]);
          turns[e] = pack(pulled[2 * e] * curve[0], pulled[2 * e + 1] * curve[1]);
          of_u1[e] = pack(pulled[2 * e] * slope[0], pulled[2 * e + 1] * slope[1]);
        }
        store_tile(own + H, mine, lane, narrow);
        store_tile(own + SLOPE, mine, lane, slopes);
        store_tile(own + TURN, mine, lane, turns);
        store_tile(own + U1, mine, lane, of_u1);
      }
      publish();
      group_barrier(half);
      const bool last = i + 1 == RANKS;
      if (last && next < chunks && copies == 0) arrive(base + FREE);
      if (!last || next < chunks) load_stacks(last ? next : local, last ? 0 : i + 1);
      const u32 which = warp & 3;
      const Map& map = which == 0 ? h_out : which == 1 ? slope_out : which == 2 ? turn_out : u1_out;
      if (copies < NONE) copy_out(map, place, column, own + H + which * TILE), close();
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
      float d[32];
      load_fragments(own + DZ, mine, lane, narrow);
#pragma unroll
      for (int e = 0; e < 32; e++) {
        const float x = e & 1 ? high(narrow[e >> 1]) : low(narrow[e >> 1]);
        row_sums[e >> 1 & 1] += zr[e] * x;
        d[e] = x * weight[e >> 1 & 1];
      }
      if (SLOT) {
        load_fragments(own + HR, mine, lane, narrow);
#pragma unroll
        for (int e = 0; e < 32; e++) {
          const float x = e & 1 ? high(narrow[e >> 1]) : low(narrow[e >> 1]);
          row_sums[2 + (e >> 1 & 1)] += zr[e] * x;
          d[e] += x * weight[2 * J - 2 + (e >> 1 & 1)];
        }
      }
      fragments(zr, narrow);
      store_tile(own + HR, mine, lane, narrow);
      publish();
      group_barrier(half);
      if (copies == 3) copy_out(hr_out, place, column, own + HR), close();
      {
        float of_h[32];
        begin();
        products<0, 0>(scores, own + HR, own + H, 1);
        products<1, 1>(of_h, base + SCORES, own + HR, 0);
        products<0, 1>(d, base + SCORES, own + H, 1);
        commit();
        end();
        settle(d), settle(of_h), settle(scores);
        fragments(of_h, narrow);
      }
      if (copies == 1 || copies == 2) read<0>();
      if (thread == 0 && last && next < chunks) {  // both groups have multiplied with queries and keys for the last time
        wait_for(base + FREE, turn & 1);
        load_tokens(next, turn + 1);
      }
      group_barrier(half);  // slopes and turns have left
      store_tile(own + SLOPE, mine, lane, narrow);
#pragma unroll
      for (int e = 0; e < 32; e++) d[e] *= bend[e];
      fragments(d, narrow);
      store_tile(own + DZ, mine, lane, narrow);
      publish();
      group_barrier(half);
      if (copies == 1 || copies == 2)
        copy_out(copies == 1 ? d_h : d_zr, place, column, own + (copies == 1 ? SLOPE : DZ)), close();
      begin();
      products<1, 1>(d, base + READS, own + DZ, 0);
      commit();
      end();
      settle(d);
      fragments(d, narrow);
      store_tile(own + TURN, mine, lane, narrow);
      publish();
      group_barrier(half);
      if (copies == 0) copy_out(d_u1, place, column, own + TURN), close();
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
    if (thread < J * C)
      d_rows[chunk * J * C + thread] = load(base + ROWS + thread * 4) + load(base + ROWS + (J * C + thread) * 4);
    float x[16], in_columns[8];
    begin();
    products_of_a_side<0, 0>(x, base + GRADIENTS, errors, half);
    commit();
    if (next < chunks) fetch_answers(next);
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
    for (int j = 0; j < 4; j += 2)
      store_matrices(to ^ (j << 4), narrow[2 * j], narrow[2 * j + 1], narrow[2 * j + 2], narrow[2 * j + 3]);
    publish();
    __syncthreads();
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
  if (copies < NONE) written();
}
