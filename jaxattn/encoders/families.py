"""The families of pretrained encoders: one row for each model_type of config.json."""

from jaxattn.encoders.bert.config import read_albert, read_bert, read_distilbert, read_electra, read_roberta
from jaxattn.encoders.bert.names import albert_tensors, bert_tensors, distilbert_tensors, electra_tensors
from jaxattn.encoders.config import FAMILIES, Family
from jaxattn.encoders.deberta.config import read_deberta
from jaxattn.encoders.deberta.names import deberta_tensors, unused_tensors
from jaxattn.encoders.gte.config import read_gte
from jaxattn.encoders.gte.names import gte_tensors
from jaxattn.encoders.jina.config import read_jina
from jaxattn.encoders.jina.names import jina_tensors
from jaxattn.encoders.modernbert.config import read_modernbert
from jaxattn.encoders.modernbert.names import modernbert_tensors
from jaxattn.encoders.mpnet.config import read_mpnet
from jaxattn.encoders.mpnet.names import mpnet_tensors
from jaxattn.encoders.nomic.config import read_nomic
from jaxattn.encoders.nomic.names import nomic_tensors

ROBERTA = Family(read_roberta, bert_tensors)

FAMILIES |= {
    "bert": Family(read_bert, bert_tensors),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": Family(read_distilbert, distilbert_tensors, body=("embeddings.", "transformer.")),
    "electra": Family(read_electra, electra_tensors, body=("embeddings.", "embeddings_project.", "encoder.")),
    "albert": Family(read_albert, albert_tensors),
    "mpnet": Family(read_mpnet, mpnet_tensors),
    "nomic_bert": Family(read_nomic, nomic_tensors, body=("embeddings.", "emb_ln.", "encoder.")),
    "gte": Family(read_gte, gte_tensors, positions="rope"),
    "jina-bert": Family(read_jina, jina_tensors, positions="alibi"),
    "deberta-v2": Family(read_deberta, deberta_tensors, unused=unused_tensors),
    "modernbert": Family(
        read_modernbert,
        modernbert_tensors,
        anchor="embeddings.tok_embeddings.weight",
        body=("embeddings.", "layers.", "final_norm."),
    ),
}
