"""Plotting: arrays to pictures. Nothing here runs a model.

``figures`` draws matplotlib figures, ``explorers`` makes pages to explore, with a figure for where scripts do not run.
``book.mplstyle`` is how figures look, for others too: ``plt.style.use("companion.plotting.book")``.
"""

from companion.plotting.explorers import Explorer as Explorer
from companion.plotting.explorers import PositionTable as PositionTable
from companion.plotting.explorers import explore_attention as explore_attention
from companion.plotting.explorers import explore_positions as explore_positions
from companion.plotting.figures import plot_attention as plot_attention
from companion.plotting.figures import plot_history as plot_history
from companion.plotting.figures import plot_lines as plot_lines
from companion.plotting.figures import plot_masks as plot_masks
from companion.plotting.figures import plot_positions as plot_positions
from companion.plotting.figures import plot_sums as plot_sums
from companion.plotting.figures import plot_tensors as plot_tensors
