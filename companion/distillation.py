"""Distillation: several classifiers together label texts that nobody has labelled, for another to learn from."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from companion.baselines import NBSVM, TfidfLogisticRegression, run_baseline
from companion.prediction import Predictor
from companion.records import TrainingRecord
from companion.runs import RunFolder, load_weights, save_weights
from companion.text import Review


def stack_decisions(
    decisions: Mapping[str, Float[Tensor, "_ teachers"]], labels: Sequence[int]
) -> dict[str, Float[Tensor, "_"]]:
    """Combine what several classifiers say of texts: stacking (Wolpert, 1992, Neural Networks 5).

    A logistic regression on the decisions of the dev split weighs the classifiers, and makes of decisions that may
    have any scale the log-odds of label 1. It has so few parameters that it needs no penalty.

    Args:
        decisions: Of each split the decisions, ``(texts, teachers)``; ``"dev"`` is among them.
        labels: The label of each text of ``"dev"``, 0 or 1.

    Returns:
        The log-odds of label 1 in each split, ``(texts,)``, float32.

    Raises:
        ValueError: If the labels are not as many as the decisions on ``"dev"``, or not 0 and 1, both.

    Example:
        >>> dev = torch.tensor([[1.0, 0.2], [1.0, -0.3], [-1.0, -0.1], [-1.0, 0.4]]).repeat(5, 1)
        >>> labels = [1, 1, 0, 0] * 4 + [1, 0, 0, 0]  # the first is right of 19 in 20, the second of every other text
        >>> stacked = stack_decisions({"dev": dev, "unsup": torch.tensor([[-1.0, 5.0]])}, labels)
        >>> ((stacked["dev"] > 0) == (dev[:, 0] > 0)).all().item()
        True
    """
    from sklearn.linear_model import LogisticRegression

    if len(labels) != len(decisions["dev"]):
        raise ValueError(f"labels has length {len(labels)}; expected {len(decisions['dev'])}, that of dev")
    if set(labels) != {0, 1}:
        raise ValueError(f"labels holds {sorted(set(labels))}; expected 0 and 1, both")
    regression = LogisticRegression(C=float("inf")).fit(decisions["dev"].double().numpy(), labels)
    return {
        split: torch.from_numpy(regression.decision_function(values.double().numpy())).float()
        for split, values in decisions.items()
    }


def run_teacher(
    predictor: Predictor,
    baseline: NBSVM | TfidfLogisticRegression,
    training: Sequence[Review],
    dev: Sequence[Review],
    test: Sequence[Review],
    unlabelled: Sequence[Review],
    *,
    output: str | os.PathLike[str],
    data: Mapping[str, Any] | None = None,
    command: str = "companion.run_teacher",
) -> TrainingRecord:
    """Label texts by a trained classifier and a baseline together, by `stack_decisions`.

    It writes ``outputs.safetensors``, the log-odds of label 1 in ``"dev"``, ``"test"`` and ``"unsup"``, and
    ``record.json``.

    Args:
        predictor: The trained classifier.
        baseline: What to fit to ``training`` beside it, on `WordTokenizer`'s tokens.
        training: What ``predictor`` was trained on.
        dev: Labelled reviews that neither was trained on, to weigh the two by.
        test: Those to report.
        unlabelled: Those to label.
        output: The run folder.
        data: Which data this is, noted in the record.
        command: What was run, noted in the record.

    Returns:
        The record; its ``wall_seconds`` count fitting the baseline and all that both say.

    Raises:
        FileExistsError: If ``output`` holds a run.
        ValueError: If a review of a labelled split has no label, or one has no review; or as `NBSVM.fit`.

    Example:
        >>> reviews, vocabulary = toy.reviews(2_000), Vocabulary.build([["dull", "good"]])
        >>> model = TextClassifier(ClassifierConfig(vocab_size=4, d_model=4, num_heads=1, d_ff=4, max_length=64))
        >>> splits = [reviews[start : start + 500] for start in range(0, 2_000, 500)]
        >>> record = run_teacher(Predictor(model, vocabulary, {}), NBSVM(max_n=3), *splits, output="teacher")
        >>> record.dev["accuracy"] > toy.BAG_OF_WORDS_BOUND
        True
    """
    run = RunFolder(output)
    run.check_free()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "decisions.safetensors")
        record = run_baseline(baseline, training, dev, test, unlabelled, data=data, outputs=path)
        said = load_weights(path)
    decisions = {
        name: torch.stack([predictor.logits([text for text, _ in reviews]), said[name].float()], dim=1)
        for name, reviews in (("dev", dev), ("test", test), ("unsup", unlabelled))
    }
    outputs = stack_decisions(decisions, _labels(dev))
    run.folder.mkdir(parents=True, exist_ok=True)
    save_weights(outputs, run.outputs)
    record = dataclasses.replace(
        record,
        command=command,
        config={
            "model": {"kind": "Teacher", "baseline": {"kind": type(baseline).__name__, **asdict(baseline)}},
            "training": {"reviews": len(training), "unlabelled": len(unlabelled)},
            "data": record.config["data"],
        },
        wall_seconds=round(time.perf_counter() - start, 1),
        parameters=sum(parameter.numel() for parameter in predictor.model.parameters()) + record.parameters,
        dev=_metrics(outputs["dev"], dev),
        test=_metrics(outputs["test"], test),
    )
    record.save(run.record)
    return record


def _labels(reviews: Sequence[Review]) -> list[int]:
    return [label for _, label in reviews if label is not None]


def _metrics(log_odds: Tensor, reviews: Sequence[Review]) -> dict[str, float]:
    labels = torch.tensor(_labels(reviews))
    loss = F.binary_cross_entropy_with_logits(log_odds, labels.to(log_odds))
    return {"loss": round(loss.item(), 6), "accuracy": ((log_odds > 0) == labels).double().mean().item()}
