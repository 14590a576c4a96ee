"""Titans and the three memories of MIRAS."""

from dataclasses import replace

from miras import MirasSpec
from zoo._entry import Entry

TITANS, MIRAS = "2501.00663", "2504.13173"
SQUARED = {"name": "l2", "half": False}
"""The papers print the squared error without the half."""

NORMED = {"name": "mlp", "eps": 1e-6}
"""As layer norms are: where memories decay, answers shrink, and what is divided by their size grows."""

WIDE = {"eps": 1e-2}
"""With it gradients stay as they are however long the text: see `miras.architectures.MLP`."""

BLUNT = {"eps": 10.0}
"""Weights that are all positive give answers that agree but for a little, which a sharper norm blows up with its rounding errors: at
1e-2 bfloat16 products made gradients of 2,048 bytes a thousand times as large."""

SLOW = {"name": "gd", "max_lr": 0.1}
"""Behind a layer norm gradients are large; the papers do not say how large their rates get."""

LEARNED = (
    "Unpublished and chosen here: gates are one a head (the paper has one a channel, without saying of which axis of which "
    "matrix), rates are at most 0.1, the start is learned."
)

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="titans_lmm",
        title="Titans, long-term memory",
        paper=TITANS,
        recurrence=r"S_t=\mu_tS_{t-1}-\eta_t\nabla\|\mathcal M(W_{t-1};k_t)-v_t\|^2,\quad W_t=\alpha_tW_{t-1}+S_t",
        spec=MirasSpec.make(
            architecture={"name": "mlp", "activation": "silu", "residual": False, "norm": False},
            bias=SQUARED,
            retention="l2",
            algorithm={"name": "momentum", "max_lr": 0.1},
            chunk_size=64,
            step_bound=None,
        ),
        recommended={
            "architecture": {"residual": True, "norm": True} | WIDE,
            "bias": {"half": True},
            "step_bound": 1.0,
        },
        note="alpha is the fraction kept, one minus the paper's. architecture={'depth': n} takes two to four layers, one is titans_linear. "
        "Width, activation, chunk size and gates are not in the paper. Eq. 32 prints the new memory on the right and "
        "Eq. 17 uses x for both key and value; meant are the old one, and k and v. Recommended: the memory answers "
        "x + LN(...), without which nothing bounds its gradient, by a norm with eps 1e-2, and every step is bounded.",
    ),
    Entry(
        name="titans_linear",
        title="Titans, linear memory",
        paper=TITANS,
        recurrence=r"S_t=\mu_tS_{t-1}-2\eta_t(W_{t-1}k_t-v_t)k_t^\top,\quad W_t=\alpha_tW_{t-1}+S_t",
        spec=MirasSpec.make(
            architecture="matrix",
            bias=SQUARED,
            retention="l2",
            algorithm={"name": "momentum", "max_lr": 0.5},
            chunk_size=64,
            step_bound=None,
        ),
        recommended={"bias": {"half": True}, "algorithm": {"max_lr": 1.0}, "chunk_size": 1, "step_bound": 1.0},
        note="Eq. 32-33. A rate of 1/2 with this loss moves the answer to a unit key onto the value. Recommended: chunks of "
        "one token, which a triangular solve computes as fast as long ones, and bounded steps.",
    ),
    Entry(
        name="moneta",
        title="Moneta",
        paper=MIRAS,
        recurrence=r"A_t=\alpha_tA_{t-1}-\eta_t\nabla\|\mathcal M(W_{t-1};k_t)-v_t\|_3^3,\quad W_t=A_t/\|A_t\|_4^2",
        spec=MirasSpec.make(
            architecture=NORMED,
            bias="lp",
            retention={"name": "lq", "link_at": "chunk"},
            algorithm=SLOW,
            chunk_size=16,
            step_bound=None,
        ),
        recommended={
            "architecture": WIDE,
            "bias": {"smooth": "loss"},
            "retention": {"form": "exact", "norm": "mean", "link_at": "token"},
            "step_bound": 1.0,
        },
        note=LEARNED
        + " In chunks the norm is that of their start (§5.4); retention={'link_at': 'token'} with chunk_size=1 is "
        "Eq. 24-25. The learning rate stands in Eq. 24 and again in 25: it is used once. The norm is that of each matrix, with "
        "a floor of 0.1; the exponent 4 stands where the paper's derivation has the dual one. "
        "As printed the link lacks an elementwise power and is no minimiser, and decay makes the memory "
        "larger, for the link has degree -1 in the accumulator. Recommended: the exact link, of degree one, with the mean in "
        "place of the sum, so that the size of the matrix does not matter; the gradient of a loss; eps 1e-2; bounded steps.",
    ),
    Entry(
        name="yaad",
        title="Yaad",
        paper=MIRAS,
        recurrence=r"W_t=\alpha_tW_{t-1}-\eta_t\begin{cases}\nabla\ell_2&\|\mathcal M(W_{t-1};k_t)-v_t\|\le\delta_t\\"
        r"\delta_t\nabla\ell_1&\text{otherwise}\end{cases}",
        spec=MirasSpec.make(
            architecture=NORMED,
            bias={"name": "yaad", "half": False},
            retention="l2",
            algorithm=SLOW,
            chunk_size=16,
            step_bound=None,
        ),
        recommended={"architecture": WIDE, "bias": {"name": "huber_norm"}, "step_bound": 1.0},
        note=LEARNED
        + " The rule of Eq. 26 is no gradient: where the error crosses delta the step grows by half the root of the "
        "width, so that an outlier just above the threshold counts most. Recommended: Huber's loss of the norm (Eq. 15), the "
        "same below delta up to the factor of two, and continuous; eps 1e-2; bounded steps.",
    ),
    Entry(
        name="memora",
        title="Memora",
        paper=MIRAS,
        recurrence=r"W_t=\mathrm{softmax}\big(\alpha_t\log W_{t-1}-\eta_t\nabla\|\mathcal M(W_{t-1};k_t)-v_t\|^2\big)",
        spec=MirasSpec.make(
            architecture=NORMED,
            bias=SQUARED,
            retention="kl",
            algorithm=SLOW,
            chunk_size=16,
            anchor_lag=1,
            step_bound=None,
        ),
        recommended={"architecture": BLUNT, "bias": {"half": True}, "retention": {"scale": "size"}, "step_bound": 1.0},
        note=LEARNED
        + " The first token of a chunk takes an exact step and the others take their gradients there (Eq. 30-32); "
        "with the gradients frozen the logits are linear, so every token still reads its own softmax. The paper names no axis: "
        "here the weights into a unit sum to one. A uniform start would keep all hidden units equal for ever; this one is "
        "random. Recommended: weights of a unit that sum to their number, so that a mean weight is one and the activation sees "
        "inputs of order one; eps 10, because a norm of answers that are nearly the same magnifies rounding; bounded steps.",
    ),
)

ENTRIES += tuple(
    replace(
        entry,
        name=f"{entry.name}_h",
        title=f"{entry.title}-H, its memory",
        note=f"The hybrid is this memory, then sliding-window attention, then an MLP. {entry.note}",
    )
    for entry in ENTRIES
    if entry.paper == MIRAS
)
