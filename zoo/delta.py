"""Delta rules: what is there about the key is corrected, not added to."""

from miras import MirasSpec
from zoo._entry import Entry

DECAYED = {"name": "l2", "gradient_at": "decayed"}

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="deltanet",
        title="DeltaNet",
        paper="2406.06484",
        recurrence=r"W_t=W_{t-1}(I-\beta_tk_tk_t^\top)+\beta_tv_tk_t^\top",
        spec=MirasSpec.make(
            architecture="matrix", bias="l2", retention="none", algorithm="gd", chunk_size=1, step_bound=None
        ),
        note="Keys have length one and beta lies in (0, 1); algorithm={'max_lr': 2.0} allows negative eigenvalues.",
    ),
    Entry(
        name="gated_deltanet",
        title="Gated DeltaNet",
        paper="2412.06464",
        recurrence=r"W_t=\alpha_tW_{t-1}(I-\beta_tk_tk_t^\top)+\beta_tv_tk_t^\top",
        spec=MirasSpec.make(
            architecture="matrix", bias="l2", retention=DECAYED, algorithm="gd", chunk_size=1, step_bound=None
        ),
        note="The gradient is taken at the decayed state.",
    ),
    Entry(
        name="deltaproduct",
        title="DeltaProduct",
        paper="2502.10297",
        recurrence=r"W_{t,0}=\alpha_tW_{t-1},\quad "
        r"W_{t,j}=W_{t,j-1}(I-\beta_{t,j}k_{t,j}k_{t,j}^\top)+\beta_{t,j}v_{t,j}k_{t,j}^\top,\quad W_t=W_{t,n}",
        spec=MirasSpec.make(
            architecture="matrix", bias="l2", retention=DECAYED, algorithm="multi_step", chunk_size=1, step_bound=None
        ),
        note="Two steps a token, as in most of the paper's models; algorithm={'count': n} takes n.",
    ),
)
