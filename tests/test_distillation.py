import dataclasses
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from companion import toy
from companion.baselines import NBSVM, TfidfLogisticRegression
from companion.configs import ClassifierConfig
from companion.distillation import run_teacher, stack_decisions
from companion.models import TextClassifier
from companion.prediction import Predictor
from companion.records import TrainingRecord
from companion.text import Review, Vocabulary, WordTokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


def noisy(labels: torch.Tensor, noise: float, scale: float) -> torch.Tensor:
    """Return decisions that know the labels through noise."""
    return scale * (2.0 * labels - 1 + noise * torch.randn(len(labels)))


def test_log_odds_are_where_the_mean_loss_on_dev_has_no_slope():
    """What a logistic regression without penalty is: convex, so that nothing else is its minimum."""
    torch.manual_seed(0)
    labels = torch.randint(2, (400,))
    dev = torch.stack([noisy(labels, 1.0, 5.0), noisy(labels, 2.0, 0.3)], dim=1)
    log_odds = stack_decisions({"dev": dev}, labels.tolist())["dev"].double()
    design = torch.cat([dev, torch.ones(400, 1)], dim=1).double()
    weights = torch.linalg.lstsq(design, log_odds[:, None]).solution[:, 0]
    torch.testing.assert_close(design @ weights, log_odds, rtol=1e-5, atol=1e-5)  # they are linear, in float32
    slope = design.T @ (log_odds.sigmoid() - labels) / 400
    assert slope.abs().max() < 1e-3  # the solver's tolerance is 1e-4, on columns scaled up to 5
    assert (weights[:2] > 0).all()
    assert weights[0] * 5 > 2 * weights[1] * 0.3  # the better one of the two counts for more


def test_what_is_fitted_to_dev_holds_for_the_other_splits():
    torch.manual_seed(1)
    labels = torch.randint(2, (60,))
    dev = torch.stack([noisy(labels, 1.0, 1.0), noisy(labels, 1.5, 2.0)], dim=1)
    decisions = {"dev": dev, "test": dev[:7], "unsup": torch.cat([dev[50:], dev[:2]])}
    log_odds = stack_decisions(decisions, labels.tolist())
    assert log_odds.keys() == decisions.keys()
    assert {values.dtype for values in log_odds.values()} == {torch.float32}
    assert torch.equal(log_odds["test"], log_odds["dev"][:7])
    assert torch.equal(log_odds["unsup"], torch.cat([log_odds["dev"][50:], log_odds["dev"][:2]]))


@settings(max_examples=25)
@given(st.floats(0.05, 20.0), st.floats(-3.0, 3.0), st.integers(0, 9))
def test_neither_scale_nor_offset_of_a_teacher_matters(scale, offset, seed):
    torch.manual_seed(seed)
    labels = torch.randint(2, (80,))
    assume(0 < labels.sum() < 80)
    dev = torch.stack([noisy(labels, 1.5, 1.0), noisy(labels, 2.0, 1.0)], dim=1)
    changed = torch.stack([scale * dev[:, 0] + offset, dev[:, 1]], dim=1)
    found, expected = (stack_decisions({"dev": values}, labels.tolist())["dev"] for values in (changed, dev))
    # The solver stops where the slope is 1e-4: the log-odds, of order 1 to 10, are that far from the minimum.
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.unhooked
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 0], "labels has length 2; expected 3, that of dev"),
        ([1, 1, 1], "labels holds [1]; expected 0 and 1, both"),
        ([0, 1, 2], "labels holds [0, 1, 2]; expected 0 and 1, both"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        stack_decisions({"dev": torch.rand(3, 2)}, labels)


REVIEWS = toy.reviews(700)
SPLITS = {"training": REVIEWS[:300], "dev": REVIEWS[300:500], "test": REVIEWS[500:600], "unlabelled": REVIEWS[600:]}


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(WordTokenizer()(text) for text, _ in REVIEWS[:300])
    shape = ClassifierConfig(vocab_size=len(vocabulary), d_model=8, num_heads=2, d_ff=8, num_layers=1, max_length=64)
    return Predictor(TextClassifier(shape), vocabulary, {})


@pytest.mark.parametrize("baseline", [NBSVM(max_n=2, seed=3), TfidfLogisticRegression(max_n=1)])
def test_a_teacher_says_what_its_members_say_stacked(predictor, tmp_path, baseline):
    """Against the two asked apart; the unlabelled reviews need no labels, and where they have any they do not count."""
    tokenize = WordTokenizer()
    unlabelled = [Review(text, None) for text, _ in SPLITS["unlabelled"]]
    splits = {**SPLITS, "unlabelled": unlabelled}
    record = run_teacher(
        predictor, baseline, *splits.values(), output=tmp_path / "run", data={"corpus": "toy"}, command="as typed"
    )
    linear = baseline.fit([tokenize(text) for text, _ in SPLITS["training"]], [n for _, n in SPLITS["training"]])
    decisions = {}
    for name, split in (("dev", "dev"), ("test", "test"), ("unsup", "unlabelled")):
        texts = [text for text, _ in SPLITS[split]]
        said = np.array(linear.decision([tokenize(text) for text in texts]))
        decisions[name] = torch.stack([predictor.logits(texts), torch.tensor(said, dtype=torch.float32)], dim=1)
    expected = stack_decisions(decisions, [label for _, label in SPLITS["dev"]])
    found = load_file(tmp_path / "run" / "outputs.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=0, atol=1e-6)
    assert record == TrainingRecord.load(tmp_path / "run" / "record.json")
    for split, metrics in (("dev", record.dev), ("test", record.test)):
        labels = torch.tensor([float(label) for _, label in SPLITS[split]])
        right = ((expected[split] > 0) == (labels == 1)).float().mean().item()
        loss = F.binary_cross_entropy_with_logits(expected[split], labels).item()
        assert metrics == pytest.approx({"loss": loss, "accuracy": right}, abs=2e-6)
        assert right > toy.BAG_OF_WORDS_BOUND or isinstance(baseline, TfidfLogisticRegression)
    assert (record.command, record.seed) == ("as typed", getattr(baseline, "seed", 0))
    assert record.config == {
        "model": {"kind": "Teacher", "baseline": {"kind": type(baseline).__name__, **dataclasses.asdict(baseline)}},
        "training": {"reviews": 300, "unlabelled": 100},
        "data": {"corpus": "toy"},
    }
    assert record.parameters == sum(map(torch.numel, predictor.model.parameters())) + linear.weights.size
    assert record.wall_seconds > 0


@pytest.mark.parametrize("split", ["training", "dev", "test"])
def test_a_review_without_a_label_is_refused_where_one_is_needed(predictor, tmp_path, split):
    splits = {**SPLITS, split: [*SPLITS[split], Review("a good film", None)]}
    count = len(SPLITS[split])
    with pytest.raises(ValueError, match=f"^{split} has {count} labels for {count + 1} reviews"):
        run_teacher(predictor, NBSVM(max_n=1), *splits.values(), output=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_a_run_is_refused_before_anything_is_fitted(predictor, tmp_path):
    (tmp_path / "record.json").write_text("{}")
    with pytest.raises(FileExistsError, match="already holds a run"):
        run_teacher(predictor, NBSVM(max_n=1), [], [], [], [], output=tmp_path)
    assert json.loads((tmp_path / "record.json").read_text()) == {}
