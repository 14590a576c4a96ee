r"""Mathematics and pieces of the gated perceptron: ``o = h Wd`` with ``h = act(z) x`` of ``z = k Wg`` and ``x = k Wu``.

Of every number of ``h`` its slopes in z and x are bends, ``b = (act'(z) x, act(z))``; its second derivatives are
``act''(z) x`` in z, ``act'(z)`` in both, and zero in x. With ``u`` the error at ``o`` (through norm and bias) and
``p = u Wd^T``, errors at both are ``u_m = p b_m``, m = g, u, and every pair writes

    Wg += s_g k^T u_g,    Wu += s_u k^T u_u,    Wd += s_d h^T u,

with ``s`` its learning rate, which a step bound makes one of each matrix: ``s = lr / (1 + lr inverse |key| |error|)``.

Backward, ``d`` before a name: let ``du_m`` be what readers, writes and bounds ask of ``u_m``, ``dh`` and ``du`` the same of h and u.
With turns ``t = p (act''(z) x, act'(z))``

    dp = du_g b_g + du_u b_u
    dWd += u^T dp,    du += dp Wd
    do = (derivative of the error)^T du,    dWd += h^T do,    dh += do Wd^T
    dz = du_g t_g + du_u t_u + dh b_g
    dx = du_g t_u + dh b_u
    dWg += k^T dz,    dWu += k^T dx,    dk += dz Wg^T + dx Wu^T

Queries q meet both at the weights of their own token, ``z_r = rows (q Wg) - (pairs q k^T) s_g u_g``, ``x_r`` alike, then ``Wd`` as
of the perceptron: ``out = rows (h_r Wd) - (pairs h_r h^T) s_d u``. With ``dh_r`` the gradient there, ``dz_r = dh_r b_g``
and ``dx_r = dh_r b_u`` at the bends of ``z_r, x_r``.

In memory, both hidden matrices of a stack lie behind each other, and so do errors, bends, turns and gradients: g first.
"""

import triton
import triton.language as tl


@triton.jit
def hidden(z, x, ACT: tl.constexpr):
    """Value, both bends, and both second derivatives that are not zero."""
    act, slope, curve = ACT(z)
    return act * x, slope * x, act, curve * x, slope


@triton.jit
def load_rate(lr, rates, token, local, rc, m: tl.constexpr, C: tl.constexpr, BOUND: tl.constexpr):
    """The rate of matrix m (gate, up, down) of every pair, bounded by the scan."""
    if BOUND:
        s = tl.load(rates + (local * 3 + m) * C + rc)
    else:
        s = tl.load(lr + token)
    return s
