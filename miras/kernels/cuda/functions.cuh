// Activations with their slopes and curvatures, and residuals of biases, as `miras.kernels._mlp.parts` and `miras.kernels._shared.biases` have
// them.

#define ACTIVATION(name) DEVICE void name(float z, float& h, float& bend, float& curve)

DEVICE float sigmoid(float z) { return reciprocal(1.0f + power_of_two(-1.4426950408889634f * z)); }

ACTIVATION(gelu) {
  float bell = power_of_two(-0.7213475204444817f * (z * z)), t = reciprocal(1.0f + 0.23164189f * fabsf(z));
  float series = 0.127414796f + t * (-0.142248368f + t * (0.7107068705f + t * (-0.7265760135f + t * 0.5307027145f)));
  float tail = bell * t * series, density = 0.3989422804014327f * bell;
  float below = z < 0.0f ? tail : 1.0f - tail;
  h = z * below;
  bend = below + z * density;
  curve = density * (2.0f - z * z);
}

ACTIVATION(gelu_tanh) {
  float square = z * z, gate = sigmoid(z * (1.5957691216057308f * (1.0f + 0.044715f * square)));
  float inner = 1.5957691216057308f * (1.0f + 3.0f * 0.044715f * square), rise = gate * (1.0f - gate);
  h = z * gate;
  bend = gate + z * rise * inner;
  curve = rise * (2.0f * inner + z * (1.0f - 2.0f * gate) * inner * inner + 6.0f * 1.5957691216057308f * 0.044715f * square);
}

ACTIVATION(silu) {
  float gate = sigmoid(z), rise = gate * (1.0f - gate);
  h = z * gate;
  bend = gate + z * rise;
  curve = rise * (2.0f + z * (1.0f - 2.0f * gate));
}

ACTIVATION(relu) {
  bend = z > 0.0f ? 1.0f : 0.0f;
  h = z * bend;
  curve = 0.0f;
}

ACTIVATION(relu2) {
  float on = z > 0.0f ? 1.0f : 0.0f;
  h = z * z * on;
  bend = 2.0f * z * on;
  curve = 2.0f * on;
}

ACTIVATION(tanh_) {
  h = 2.0f * sigmoid(2.0f * z) - 1.0f;
  bend = 1.0f - h * h;
  curve = -2.0f * h * bend;
}

ACTIVATION(identity) {
  h = z;
  bend = 1.0f;
  curve = 0.0f;
}

// Residuals of a prediction, a value and a gate, with constants C0, C1, ...

#define RESIDUAL_OF(name) DEVICE float name##_residual(float p, float v, float g)

RESIDUAL_OF(dot) { return -v; }
RESIDUAL_OF(l2) { return C0 * (p - v); }
RESIDUAL_OF(log_cosh) { return 2.0f * sigmoid(2.0f * (p - v)) - 1.0f; }
RESIDUAL_OF(huber) { return fminf(fmaxf(p - v, -g), g); }

// What a gradient d of a residual becomes for its prediction, its value and its gate.

#define PULL_BACK_OF(name) DEVICE void name##_vjp(float p, float v, float g, float d, float& d_p, float& d_v, float& d_g)

PULL_BACK_OF(dot) { d_p = 0.0f, d_v = -d, d_g = 0.0f; }
PULL_BACK_OF(l2) { d_p = C0 * d, d_v = -C0 * d, d_g = 0.0f; }
PULL_BACK_OF(log_cosh) {
  float e = log_cosh_residual(p, v, g);
  d_p = (1.0f - e * e) * d, d_v = -d_p, d_g = 0.0f;
}
PULL_BACK_OF(huber) {
  float r = p - v;
  d_p = fabsf(r) <= g ? d : 0.0f, d_v = -d_p;
  d_g = r > g ? d : r < -g ? -d : 0.0f;
}

// A learning rate divided by one plus the norm of its step, and what a gradient of it becomes; ``square`` is that of the gradient's norm.

DEVICE float bounded_rate(float lr, float inverse, float square) {
  return lr * reciprocal(1.0f + root(square + 1e-30f) * lr * inverse);
}

DEVICE void bounded_vjp(float d_rate, float lr, float inverse, float square, float& d_lr, float& d_inverse,
                        float& d_half_square) {
  const float norm = root(square + 1e-30f), damp = reciprocal(1.0f + norm * lr * inverse);
  d_lr = d_rate * damp * damp;
  d_inverse = -d_lr * lr * lr * norm;
  d_half_square = -d_lr * lr * lr * inverse * reciprocal(norm);
}
