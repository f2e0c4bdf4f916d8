"""Where the weights of RoBERTa, XLM-RoBERTa and CamemBERT come from: BERT's keys in transformers' `RobertaModel`.

What they compute: `jaxpool/models/roberta.py`.
"""

from jaxpool.converters.bert import RULES, TOKEN_CLASSIFIER
from jaxpool.converters.rules import Table, linear, skip

CLASSIFIER = (*linear("classifier.dense", "0/linear"), *linear("classifier.out_proj", "1/linear"))

TABLE = Table(
    rules=(*RULES, skip("lm_head.*")),  # the head of RobertaForMaskedLM
    prefixes=("roberta.",),  # of all three kinds
    heads={"classification": CLASSIFIER, "token_classification": tuple(TOKEN_CLASSIFIER)},
)
