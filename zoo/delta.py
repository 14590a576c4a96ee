"""Delta rules: what is there about the key is corrected, not added to."""

from typing import Any

from miras import MirasSpec, Surroundings
from miras.ties import ClosedLoop, Diagonal, EraseWrite
from zoo._entry import Entry


def _spec(**fields: Any) -> MirasSpec:
    """Token by token, which a linear memory solves a tile at a time."""
    usual = {"architecture": "matrix", "bias": "l2", "algorithm": "gd", "chunk_size": 1, "step_bound": None}
    return MirasSpec.make(**usual | fields)


DECAYED = {"name": "l2", "gradient_at": "decayed"}
"""Forget first, then look."""

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="deltanet",
        title="DeltaNet",
        paper="2406.06484",
        recurrence=r"W_t=W_{t-1}(I-\beta_tk_tk_t^\top)+\beta_tv_tk_t^\top",
        spec=_spec(retention="none"),
        around=Surroundings(zero_start=True, output_gate=False),
        note="Keys have length one and beta lies in (0, 1); algorithm={'max_lr': 2.0} allows negative eigenvalues.",
    ),
    Entry(
        name="gated_deltanet",
        title="Gated DeltaNet",
        paper="2412.06464",
        recurrence=r"W_t=\alpha_tW_{t-1}(I-\beta_tk_tk_t^\top)+\beta_tv_tk_t^\top",
        spec=_spec(retention=DECAYED),
        around=Surroundings(zero_start=True),
        note="The gradient is taken at the decayed state. The paper makes its decay as Mamba-2 does; here it is a gate of its "
        "own.",
    ),
    Entry(
        name="kda",
        title="Kimi Delta Attention",
        paper="2510.26692",
        recurrence=r"\bar W_t=W_{t-1}\mathrm{Diag}(\alpha_t),\quad W_t=\bar W_t-\beta_t(\bar W_tk_t-v_t)k_t^\top",
        spec=_spec(retention=DECAYED | {"per": "key"}),
        around=Surroundings(zero_start=True),
        note="Gated DeltaNet with a decay for every key channel.",
    ),
    Entry(
        name="rwkv7",
        title="RWKV-7",
        paper="2503.14456",
        recurrence=r"W_t=W_{t-1}\big(\mathrm{Diag}(w_t)-\hat\kappa_t(a_t\odot\hat\kappa_t)^\top\big)"
        r"+v_t\tilde k_t^\top",
        spec=_spec(
            bias="feedback",
            retention={"name": "l2", "per": "key"},
            algorithm={"name": "multi_step", "count": 2, "per": "key"},
        ),
        around=Surroundings(conv=0, activation="identity", qk_norm=False, zero_start=True, ties=(EraseWrite(),)),
        note="Two pairs a token: one with feedback 1 and no value erases along kappa, one with feedback 0 writes along the "
        "other key. Token shift, the value residual and the bonus after the memory are left to the layer.",
    ),
    Entry(
        name="comba",
        title="Comba",
        paper="2506.02475",
        recurrence=r"\bar W_t=\alpha_tW_{t-1},\quad W_t=\bar W_t-\beta_t(b\,\bar W_tk_t-v_t)k_t^\top,\quad "
        r"y_t=W_t(q_t-D\,b\,k_t)",
        spec=_spec(bias="feedback", retention=DECAYED),
        around=Surroundings(zero_start=True, ties=(ClosedLoop(),)),
        note="The strength b of the feedback is one number a head. The layer of flash-linear-attention 0.6.0 scales the key by "
        "it and then normalises the product, so that there b corrects the query only; here it weakens the feedback too, as in "
        "the paper. Small models may want D to start at 0.02.",
    ),
    Entry(
        name="deltaproduct",
        title="DeltaProduct",
        paper="2502.10297",
        recurrence=r"W_{t,0}=\alpha_tW_{t-1},\quad "
        r"W_{t,j}=W_{t,j-1}(I-\beta_{t,j}k_{t,j}k_{t,j}^\top)+\beta_{t,j}v_{t,j}k_{t,j}^\top,\quad W_t=W_{t,n}",
        spec=_spec(retention=DECAYED, algorithm={"name": "multi_step", "count": 2, "max_lr": 2.0}),
        around=Surroundings(zero_start=True),
        note="Two steps a token and beta in (0, 2); algorithm={'count': n} takes n steps.",
    ),
    Entry(
        name="longhorn",
        title="Longhorn",
        paper="2407.14207",
        recurrence=r"W_t=W_{t-1}-\epsilon_t\odot(W_{t-1}k_t-v_t)k_t^\top,\quad "
        r"\epsilon_t=\frac{\beta_t}{1+\beta_t\|k_t\|^2}",
        spec=_spec(retention="none", algorithm={"name": "implicit", "per": "value"}, chunk_size=1),
        around=Surroundings(qk_norm=False, zero_start=True),
        note="The exact solution of Theorem 3.1, with one beta for every value channel. algorithm={'per': 'head'} is much "
        "faster: a triangular solve.",
    ),
    Entry(
        name="longhorn_diagonal",
        title="Longhorn, as trained",
        paper="2407.14207",
        recurrence=r"W_{t,oi}=(1-\epsilon_{t,o}k_{t,i}^2)W_{t-1,oi}+\epsilon_{t,o}v_{t,o}k_{t,i},\quad "
        r"\epsilon_t=\frac{\beta_t}{1+\beta_t\|k_t\|^2}",
        spec=_spec(
            bias="dot",
            retention={"name": "l2", "per": "entry"},
            algorithm={"name": "gd", "per": "value"},
            chunk_size=16,
        ),
        around=Surroundings(qk_norm=False, zero_start=True, ties=(Diagonal(),)),
        note="Of k k' the released kernel keeps the diagonal, which makes the step a decay of every entry, and the memory "
        "Hebbian; chunks change nothing but speed.",
    ),
)
