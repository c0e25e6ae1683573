"""The families of pretrained encoders: one row for each model_type of config.json."""

from jaxattn.encoders.bert.config import read_bert, read_distilbert, read_roberta
from jaxattn.encoders.bert.names import bert_tensors, distilbert_tensors
from jaxattn.encoders.config import FAMILIES, Family
from jaxattn.encoders.deberta.config import read_deberta
from jaxattn.encoders.deberta.names import deberta_tensors, unused_tensors
from jaxattn.encoders.modernbert.config import read_modernbert
from jaxattn.encoders.modernbert.names import modernbert_tensors

ROBERTA = Family(read_roberta, bert_tensors)

FAMILIES |= {
    "bert": Family(read_bert, bert_tensors),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": Family(read_distilbert, distilbert_tensors, body=("embeddings.", "transformer.")),
    "deberta-v2": Family(read_deberta, deberta_tensors, unused=unused_tensors),
    "modernbert": Family(
        read_modernbert,
        modernbert_tensors,
        anchor="embeddings.tok_embeddings.weight",
        body=("embeddings.", "layers.", "final_norm."),
    ),
}
