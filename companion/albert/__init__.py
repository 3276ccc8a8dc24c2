"""ALBERT (Lan et al., 2020, arXiv:1909.11942): the model, its heads, and its checkpoints.

``config`` has the shape and counts its parameters, ``model`` is the encoder, ``heads`` what stands on it,
``checkpoints`` reads and writes the files of Hugging Face's ``transformers``, ``classifier`` reads long texts.
"""

from companion.albert.checkpoints import checkpoint_folder as checkpoint_folder
from companion.albert.checkpoints import load_albert as load_albert
from companion.albert.checkpoints import save_albert as save_albert
from companion.albert.classifier import AlbertTextClassifier as AlbertTextClassifier
from companion.albert.classifier import AlbertTextConfig as AlbertTextConfig
from companion.albert.config import AlbertConfig as AlbertConfig
from companion.albert.config import num_parameters as num_parameters
from companion.albert.heads import AlbertForMaskedLM as AlbertForMaskedLM
from companion.albert.heads import AlbertForPreTraining as AlbertForPreTraining
from companion.albert.heads import AlbertForQuestionAnswering as AlbertForQuestionAnswering
from companion.albert.heads import AlbertForSequenceClassification as AlbertForSequenceClassification
from companion.albert.heads import AlbertPreTrainingOutput as AlbertPreTrainingOutput
from companion.albert.heads import AlbertSpanOutput as AlbertSpanOutput
from companion.albert.model import AlbertModel as AlbertModel
from companion.albert.model import AlbertOutput as AlbertOutput
