"""The tested PyTorch package behind *The Measured Transformer*.

Text flows downwards through its files: ``imdb``, ``text``, ``corpus``, ``toy``, ``cooccurrence``, ``batching``,
``cache``, ``dropout``, ``linear``, ``attention``, ``packing``, ``attention_maps``, ``efficient_attention``,
``positions``, ``feed_forward``, ``layers``, ``decoding``, ``configs``, ``models``, ``article``, ``ngrams``,
``losses``, ``quantization``, ``pretraining``, ``progress``, ``devices``, ``optimization``, ``records``, ``albert``,
``runs``, ``interruption``, ``loop``, ``training``, ``plans``, ``prediction``, ``transfer``, ``baselines``,
``distillation``, ``comparison``, ``study``, ``experiments``, ``results``, ``plotting``; ``exercises`` and ``cli`` use
them. The public names below are loaded when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
