"""Where the weights of sentence-transformers' own modules come from. What they compute: `jaxpool/heads.py`."""

from jaxpool.converters.rules import Table, layer_norm, linear

TABLE = Table(
    rules=(
        *linear("linear", "linear"),
        *linear("residual", "residual"),
        *layer_norm("norm", "norm"),
    )
)
