"""ALBERT's checkpoints as Hugging Face's ``transformers`` has them: ``config.json``, and weights under its names."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from companion.albert.config import AlbertConfig
from companion.albert.heads import (
    AlbertForMaskedLM,
    AlbertForPreTraining,
    AlbertForQuestionAnswering,
    AlbertForSequenceClassification,
)
from companion.albert.model import AlbertModel
from companion.files import atomic_path
from companion.records import read_json, write_json

Albert = (
    AlbertModel
    | AlbertForMaskedLM
    | AlbertForPreTraining
    | AlbertForSequenceClassification
    | AlbertForQuestionAnswering
)
_AnyAlbert = TypeVar("_AnyAlbert", bound=Albert)

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_HEADS = ("albert.pooler.", "predictions.", "sop_classifier.", "classifier.", "qa_outputs.")
_TIED = {
    "predictions.decoder.weight": "albert.embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "predictions.bias",
}
_BUFFERS = ("albert.embeddings.position_ids", "albert.embeddings.token_type_ids")  # older files have them


def load_albert(path: str | os.PathLike[str], cls: type[_AnyAlbert] = AlbertModel) -> _AnyAlbert:
    """Load an ALBERT that ``transformers``, or `save_albert`, has written.

    The file's tensors must be those of ``cls``, no more and no fewer, but for heads that ``cls`` lacks. To fine-tune,
    load an `AlbertModel` and make it the ``albert`` of a new `AlbertForSequenceClassification`.

    Args:
        path: A folder with ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin`` (of which nothing but
            tensors is unpickled). A string such as ``"albert/albert-base-v2"`` that names no folder is a repository
            on the Hugging Face Hub, downloaded once and kept in the cache of ``huggingface_hub``.
        cls: The class of the model, such as `AlbertForPreTraining`.

    Returns:
        The model, in evaluation mode, on the CPU, in the file's dtype.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or a file of it is missing.
        ValueError: If a file is damaged or describes something else; or if tensors are missing, surplus or of another
            shape, all of which the message lists.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> model, ids = AlbertForPreTraining(config).eval(), torch.tensor([[2, 5, 6, 3]])
        >>> save_albert(model, "checkpoint")
        >>> torch.equal(load_albert("checkpoint")(ids).pooler_output, model.albert(ids).pooler_output)
        True
    """
    folder = checkpoint_folder(path)
    weights_file = next(folder / name for name in _WEIGHTS if (folder / name).exists())
    with torch.device("meta"):
        model = cls(_read_config(folder / "config.json"))
    tensors = _read_tensors(weights_file)
    expected = hugging_face_tensors(model)
    problems = _problems(tensors, expected)
    if problems:
        raise ValueError(f"{weights_file} does not fit {cls.__name__}: {'; '.join(problems)}")
    model.to(tensors[next(iter(expected))].dtype).to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in hugging_face_tensors(model).items():
            tensor.copy_(tensors[name])
    return model.eval()


def save_albert(model: Albert, path: str | os.PathLike[str]) -> None:
    """Write ``config.json`` and ``model.safetensors``, which the ``from_pretrained`` of ``transformers`` loads.

    The weights come back bit for bit. ``transformers`` knows no layers that share their attention alone, or their
    feed-forward network alone: such a model is written as one that shares nothing and computes the same.

    Args:
        model: The model.
        path: The folder, made where it does not exist.

    Raises:
        OSError: If it cannot be written.

    Example:
        >>> config = AlbertConfig(vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=16)
        >>> save_albert(AlbertModel(config), "checkpoint")
        >>> load_albert("checkpoint").config == config
        True
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().clone() for name, tensor in hugging_face_tensors(model).items()}
    if isinstance(model, AlbertModel):
        tensors = {name.removeprefix("albert."): tensor for name, tensor in tensors.items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", _config_entries(model))


def hugging_face_tensors(model: Albert) -> dict[str, Tensor]:
    """Return a model's parameters under Hugging Face's names, as views: what is written to them is in the model."""
    albert = model if isinstance(model, AlbertModel) else model.albert
    modules: dict[str, Any] = {
        "albert.embeddings.LayerNorm": albert.embeddings.norm,
        "albert.encoder.embedding_hidden_mapping_in": albert.embedding_map,
        "albert.pooler": albert.pooler,
    }
    tensors: dict[str, Tensor] = {
        "albert.embeddings.word_embeddings.weight": albert.embeddings.word.weight,
        "albert.embeddings.position_embeddings.weight": albert.embeddings.position.weight,
        "albert.embeddings.token_type_embeddings.weight": albert.embeddings.token_type.weight,
    }
    for group, layer in enumerate(_first_layers(albert.config)):
        for inner, (attention, feed_forward) in enumerate(albert.sublayers(layer)):
            prefix = f"albert.encoder.albert_layer_groups.{group}.albert_layers.{inner}"
            modules |= {
                f"{prefix}.attention.dense": attention.attention.out_proj,
                f"{prefix}.attention.LayerNorm": attention.norm,
                f"{prefix}.ffn": feed_forward.feed_forward.inner,
                f"{prefix}.ffn_output": feed_forward.feed_forward.outer,
                f"{prefix}.full_layer_layer_norm": feed_forward.norm,
            }
            for kind, joined in attention.attention.in_proj.named_parameters():
                for name, part in zip(("query", "key", "value"), joined.chunk(3), strict=True):
                    tensors[f"{prefix}.attention.{name}.{kind}"] = part
    if isinstance(model, AlbertForMaskedLM | AlbertForPreTraining):
        head = model.predictions
        modules |= {"predictions.dense": head.dense, "predictions.LayerNorm": head.norm}
        tensors["predictions.bias"] = head.bias
    if isinstance(model, AlbertForPreTraining):
        modules["sop_classifier.classifier"] = model.sop_classifier
    if isinstance(model, AlbertForSequenceClassification):
        modules["classifier"] = model.classifier
    if isinstance(model, AlbertForQuestionAnswering):
        modules["qa_outputs"] = model.span
    for name, module in modules.items():
        if module is not None:
            tensors |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return tensors


def _first_layers(config: AlbertConfig) -> list[int]:
    """Return the first layer of each of Hugging Face's groups, which share everything or nothing."""
    layers = range(config.num_hidden_layers)
    if config.sharing != "all":
        return list(layers)
    first = {config.group(layer): layer for layer in reversed(layers)}
    return [first[group] for group in range(config.num_hidden_groups)]


def _config_entries(model: Albert) -> dict[str, Any]:
    entries = dataclasses.asdict(model.config)
    num_labels = entries.pop("num_labels")
    if entries.pop("sharing") != "all":
        entries["num_hidden_groups"] = entries["num_hidden_layers"]
    labels = {str(number): f"LABEL_{number}" for number in range(num_labels)}
    return {
        "architectures": [type(model).__name__],
        "model_type": "albert",
        **entries,
        "id2label": labels,
        "label2id": {label: int(number) for number, label in labels.items()},
    }


def checkpoint_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder that holds a checkpoint, downloaded where ``path`` is ``owner/name`` on the Hub.

    Args:
        path: As in `load_albert`.

    Returns:
        A folder with ``config.json``, weights and, where the checkpoint has one, ``spiece.model``.

    Raises:
        FileNotFoundError: As `load_albert`.
    """
    folder = Path(path)
    if folder.is_file():
        raise FileNotFoundError(f"{folder} is a file; name the folder of a checkpoint")
    if not folder.is_dir():
        if not isinstance(path, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
            raise FileNotFoundError(f"{path} does not exist; name the folder of a checkpoint, or owner/name on the Hub")
        return _download(path)
    if not (folder / "config.json").exists() or not any((folder / name).exists() for name in _WEIGHTS):
        wanted = f"config.json and {' or '.join(_WEIGHTS)}"
        raise FileNotFoundError(f"{folder} holds no {wanted}; name the folder of a checkpoint")
    return folder


def _download(repository: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    def download(*names: str) -> str | None:
        """Download the first of some files that the repository has."""
        for name in names:
            try:
                return hf_hub_download(repository, name)
            except LocalEntryNotFoundError:  # a kind of EntryNotFoundError: there is no connection
                raise
            except EntryNotFoundError:
                continue
        return None

    try:
        config, weights = download("config.json"), download(*_WEIGHTS)
        download("spiece.model")
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"{repository} is no folder here, and cannot be had from the Hub ({_first_line(error)}); "
            "name a folder, or try again with a connection"
        ) from error
    if config is None or weights is None:
        raise FileNotFoundError(f"{repository} on the Hub holds no config.json and {' or '.join(_WEIGHTS)}")
    return Path(config).parent


def _read_config(path: Path) -> AlbertConfig:
    entries = read_json(path)
    kind = entries.get("model_type", "albert")
    positions = entries.get("position_embedding_type", "absolute")
    if kind != "albert" or positions != "absolute":
        raise ValueError(f"{path} is of a model of type {kind!r} with {positions} positions; expected an ALBERT's")
    defaults = dataclasses.asdict(AlbertConfig.xxlarge())  # Hugging Face's
    del defaults["sharing"]
    shape = {name: entries.get(name, value) for name, value in defaults.items()}
    try:
        if "id2label" in entries:
            shape["num_labels"] = len(entries["id2label"])
        return AlbertConfig(**shape)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe an ALBERT ({error})") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors, under the names that they have in a model with a head."""
    try:
        pickled = path.suffix == ".bin"
        tensors = torch.load(path, map_location="cpu", weights_only=True) if pickled else load_file(path)
    except Exception as error:  # torch.load raises its own errors, those of zip files, and those of pickles
        reason = _first_line(error)
        raise ValueError(f"{path} is damaged, or holds more than tensors ({reason}); fetch it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} holds something else than tensors by their names; fetch it again")
    base = not any(name.startswith("albert.") for name in tensors)
    return {f"albert.{name}" if base else name: tensor for name, tensor in tensors.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _problems(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """List what keeps the tensors of a file from being those of a model."""
    other_heads = tuple(head for head in _HEADS if not any(name.startswith(head) for name in expected))
    ignored = {*_BUFFERS, *_TIED} | {name for name in tensors if name.startswith(other_heads)}
    problems = [f"{name} is missing" for name in expected if name not in tensors]
    problems += [f"{name} is surplus" for name in tensors if name not in expected and name not in ignored]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}; expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems += [
        f"{name} has dtype {tensors[name].dtype}; expected a floating one"
        for name in expected
        if name in tensors and not tensors[name].is_floating_point()
    ]
    problems += [
        f"{name} is not {other}, to which it is tied here"
        for name, other in _TIED.items()
        if name in tensors and other in tensors and not torch.equal(tensors[name], tensors[other])
    ]
    return problems
