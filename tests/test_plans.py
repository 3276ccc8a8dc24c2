import re

import pytest
import torch

from companion.batching import labelled_batches
from companion.models import ClassifierConfig, TextClassifier
from companion.optimization import TrainingConfig
from companion.plans import training_plan
from companion.records import write_json

MODEL = TextClassifier(ClassifierConfig(vocab_size=9, d_model=4, num_heads=1, d_ff=4, max_length=8, num_layers=1))
BATCHES = labelled_batches([[2] * 5] * 7 + [[3]], [0, 1] * 4, max_tokens=10)  # 1 token, and 7 of 5: two to a batch
DEV = labelled_batches([[2] * 5] * 3, [0, 1, 1], max_tokens=5, shuffle=False)


def plan(config: TrainingConfig, **options) -> tuple[str, dict[str, str]]:
    text = training_plan(MODEL, BATCHES, DEV, config, **options)
    modules, _, lines = text.partition("\n\n")
    return modules, dict(re.split(r" {2,}", line, maxsplit=1) for line in lines.splitlines())


def test_the_plan_says_what_would_be_done():
    config = TrainingConfig(epochs=5, gradient_accumulation_steps=3, mixed_precision="bf16")
    modules, lines = plan(config, output="runs/first", checkpoint_every=1_000)
    assert modules == str(MODEL)
    # Embedding 9 x 4, positions 8 x 4; attention 4 x 12 + 12 and 4 x 4 + 4; feed-forward 2 x (4 x 4 + 4); two
    # normalisations 2 x 8; output 4 + 1.
    assert lines == {
        "parameters": f"{36 + 32 + 60 + 20 + 40 + 16 + 5:,}",
        "training": "8 examples, 36 tokens, 4 batches an epoch, 2 updates",
        "dev": "3 examples, 15 tokens, 3 batches",
        "epochs": "5, about 10 updates in all",
        "device": f"{'cuda' if torch.cuda.is_available() else 'cpu'}, bf16, processes: 1",
        "output": "runs/first, a checkpoint after each epoch and every 1,000 updates",
    }


@pytest.mark.parametrize(("resume", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_is_the_one_that_a_resumed_run_has_chosen(tmp_path, resume, precision):
    write_json(tmp_path / "config.json", {"training": {"mixed_precision": "bf16"}})
    _, lines = plan(TrainingConfig(), output=tmp_path, resume=resume)
    assert precision in lines["device"]
    assert lines["output"] == f"{tmp_path}, a checkpoint after each epoch"
