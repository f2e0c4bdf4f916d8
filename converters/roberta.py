"""Where the weights of RoBERTa, XLM-RoBERTa and CamemBERT come from: BERT's keys in transformers' `RobertaModel`.

What they compute: `jaxpool/models/roberta.py`.
"""

from jaxpool.converters.bert import RULES
from jaxpool.converters.rules import Table, skip

TABLE = Table(
    rules=(*RULES, skip("lm_head.*")),  # the head of RobertaForMaskedLM
    prefixes=("roberta.",),  # of all three kinds
)
