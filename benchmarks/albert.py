"""ALBERT-base beside transformers' and, in inference, curated-transformers', from one checkpoint."""

import tempfile
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
import transformers
from curated_transformers.layers import AttentionMask, enable_torch_sdp
from curated_transformers.models import ALBERTConfig, ALBERTEncoder
from torch import Tensor, nn

from benchmarks.imdb_batches import as_they_come
from benchmarks.turns import DEVICE, OURS, Comparison, largest_difference, sized
from companion import AlbertForSequenceClassification, load_albert

TOKENS, TEXTS = sized(cpu=(512, 4), gpu=(16_384, 32))
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.01}
"""Of logits whose deviation over texts is about 0.1."""


def comparisons() -> Iterator[Comparison]:
    """Yield forward pass and training step: full batches of either length, then texts of real lengths."""
    models = _make_models()
    for dtype, full in ((torch.float32, 1.05), (torch.bfloat16, 1.2)):
        for length, lengths, aim in (
            (128, [128] * (TOKENS // 128), full),
            (512, [512] * (TOKENS // 512), full),
            (512, _real_lengths(TEXTS), 1.5),
        ):
            yield from _compare(models, dtype, length, lengths, aim)


def _compare(
    models: dict[str, nn.Module], dtype: torch.dtype, length: int, lengths: list[int], aim: float
) -> Iterator[Comparison]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).to(DEVICE)
    ids = torch.randint(5, 30_000, mask.shape, generator=generator).to(DEVICE).masked_fill(~mask, 0)
    given = None if mask.all() else mask
    precision = str(dtype).removeprefix("torch.")
    texts = f"{len(lengths)} of {length} tokens" if given is None else f"{len(lengths)} of real lengths up to {length}"
    readers = {name: _reader(name, model, ids, given, dtype) for name, model in models.items()}
    mine, *others = [read() for read in readers.values()]
    settings = {
        "precision": precision,
        "length": length,
        "real_lengths": given is not None,
        "padding": round(1 - float(mask.float().mean()), 3),
    }
    forward = Comparison(
        part="albert",
        work=f"inference, {texts}, {precision}",
        amount=sum(lengths),
        unit="tokens",
        contenders=readers,
        difference=largest_difference(mine, others, TOLERANCES[dtype]),
        aim=aim,
        settings={**settings, "mode": "inference"},
    )
    yield forward
    trained = {name: model for name, model in models.items() if not name.startswith("curated")}
    yield forward._replace(
        work=f"training step, {texts}, {precision}",
        contenders={name: _trainer(model, ids, given, dtype) for name, model in trained.items()},
        settings={**settings, "mode": "training"},
    )


def _make_models() -> dict[str, nn.Module]:
    """Make the classifiers of one checkpoint in Hugging Face's format, without dropout."""
    config = transformers.AlbertConfig(
        hidden_size=768,
        num_attention_heads=12,
        intermediate_size=3072,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        classifier_dropout_prob=0.0,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    theirs = transformers.AlbertForSequenceClassification(config)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_albert(folder, AlbertForSequenceClassification)
    models = {
        OURS: ours,
        "transformers": theirs,
        "curated-transformers": CuratedAlbert(theirs),
        "curated-transformers, sdp": CuratedAlbert(theirs, fused=True),
    }
    return {name: model.to(DEVICE) for name, model in models.items()}


class CuratedAlbert(nn.Module):
    """curated-transformers' ALBERT under the pooler and the classifier of transformers'."""

    def __init__(self, theirs: transformers.AlbertForSequenceClassification, *, fused: bool = False) -> None:
        super().__init__()
        self.fused = fused
        self.encoder = ALBERTEncoder(ALBERTConfig())
        self.encoder.load_state_dict(ALBERTEncoder.state_dict_from_hf(theirs.albert.state_dict()), strict=False)
        self.pooler, self.classifier = theirs.albert.pooler, theirs.classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the logits of the labels, ``(batch, 2)``."""
        mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
        with enable_torch_sdp(self.fused):
            hidden = self.encoder(input_ids, AttentionMask(mask)).last_hidden_layer_state
        return self.classifier(self.pooler(hidden[:, 0]).tanh())


def _reader(name: str, model: nn.Module, ids: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def read() -> Tensor:
        model.eval()
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            logits = model(ids, mask)
        return (logits.logits if name == "transformers" else logits).float()

    return read


def _trainer(model: nn.Module, ids: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Callable[[], None]:
    """Return forward and backward pass; no optimizer, which is the same for both."""
    labels = torch.arange(len(ids), device=DEVICE) % 2

    def train() -> None:
        model.train()
        with torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32):
            output = model(ids, mask)
        logits = output if isinstance(output, Tensor) else output.logits
        F.cross_entropy(logits.float(), labels).backward()
        model.zero_grad()

    return train


def _real_lengths(count: int) -> list[int]:
    """Return the lengths of reviews drawn from IMDB's training split, cut to 512 tokens."""
    ids, _ = as_they_come(1)[0]
    return (ids[:count] != 0).sum(dim=1).tolist()
