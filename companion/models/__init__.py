"""Models: from token ids to logits.

``inputs`` makes embeddings and positions, ``classifiers`` label texts, tokens and spans, ``seq2seq`` writes.
"""

from companion.configs import ClassifierConfig as ClassifierConfig
from companion.models.classifiers import SpanExtractor as SpanExtractor
from companion.models.classifiers import SpanOutput as SpanOutput
from companion.models.classifiers import TextClassifier as TextClassifier
from companion.models.classifiers import TokenClassifier as TokenClassifier
from companion.models.inputs import drop_words as drop_words
from companion.models.inputs import masked_mean as masked_mean
from companion.models.seq2seq import Seq2SeqTransformer as Seq2SeqTransformer
