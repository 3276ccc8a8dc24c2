"""Small corpora written by grammars of ours: they need no download, and what they test is known by construction.

``sentiment``: reviews with a verdict; ``sequences``: token ids, a label for each; ``bilingual``: English and German;
``reports``: with their summaries; ``passages``: with questions.
"""

from companion.toy.bilingual import translation as translation
from companion.toy.pairs import TextPair as TextPair
from companion.toy.passages import Question as Question
from companion.toy.passages import questions as questions
from companion.toy.reports import summaries as summaries
from companion.toy.sentiment import BAG_OF_WORDS_BOUND as BAG_OF_WORDS_BOUND
from companion.toy.sentiment import reviews as reviews
from companion.toy.sequences import TaggedSequence as TaggedSequence
from companion.toy.sequences import histogram as histogram
from companion.toy.sequences import recall as recall
from companion.toy.sequences import reverse as reverse
