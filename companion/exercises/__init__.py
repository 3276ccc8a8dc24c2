"""Exercises: checks that try a reader's function and name the usual mistake they see.

Each ``check_...(f)`` calls ``f`` on small inputs and prints a line that begins with ``Right:``, or raises an
AssertionError of one sentence: the mistake and its mend, or else where the result first differs. What ``f`` itself
raises comes through. ``f`` gets copies, so it may work in place.
"""

from companion.exercises.albert import check_albert_parameters as check_albert_parameters
from companion.exercises.albert import check_masked_loss as check_masked_loss
from companion.exercises.albert import check_ngram_lengths as check_ngram_lengths
from companion.exercises.albert import check_sentence_order as check_sentence_order
from companion.exercises.applications import check_best_span as check_best_span
from companion.exercises.applications import check_token_f1 as check_token_f1
from companion.exercises.attention import check_attention as check_attention
from companion.exercises.attention import check_causal_mask as check_causal_mask
from companion.exercises.attention import check_multi_head_attention as check_multi_head_attention
from companion.exercises.attention import check_padding_mask as check_padding_mask
from companion.exercises.attention import check_softmax_gradient as check_softmax_gradient
from companion.exercises.background import check_mean_pooling as check_mean_pooling
from companion.exercises.background import check_recurrence as check_recurrence
from companion.exercises.background import check_softmax as check_softmax
from companion.exercises.background import check_split_heads as check_split_heads
from companion.exercises.errata import check_permutation_gap as check_permutation_gap
from companion.exercises.faq import check_masked_softmax as check_masked_softmax
from companion.exercises.imdb import check_calibration_error as check_calibration_error
from companion.exercises.imdb import check_deletion as check_deletion
from companion.exercises.imdb import check_log_count_ratio as check_log_count_ratio
from companion.exercises.imdb import check_mean_loss as check_mean_loss
from companion.exercises.layers import check_feed_forward as check_feed_forward
from companion.exercises.layers import check_layer_norm as check_layer_norm
from companion.exercises.layers import check_learning_rate as check_learning_rate
from companion.exercises.layers import check_parameter_count as check_parameter_count
from companion.exercises.layers import check_post_norm as check_post_norm
from companion.exercises.layers import check_teacher_forcing as check_teacher_forcing
from companion.exercises.performance import check_pack as check_pack
from companion.exercises.performance import check_ratio as check_ratio
from companion.exercises.positions import check_alibi as check_alibi
from companion.exercises.positions import check_positions as check_positions
from companion.exercises.positions import check_rotary as check_rotary
from companion.exercises.positions import check_shift_matrix as check_shift_matrix
from companion.exercises.trends import check_linear_attention as check_linear_attention
from companion.exercises.trends import check_multiply_adds as check_multiply_adds
from companion.exercises.trends import check_patches as check_patches
from companion.exercises.trends import check_quantize as check_quantize
