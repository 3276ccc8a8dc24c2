import pytest
import torch
from torch import nn

from companion.albert import AlbertConfig, AlbertModel
from companion.attention import MultiHeadAttention
from companion.attention_maps import attention_weights
from companion.configs import ClassifierConfig, Seq2SeqConfig
from companion.layers import Encoder
from companion.models import Seq2SeqTransformer, TextClassifier

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_weights_are_those_of_torchs_attention():
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    theirs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    weights = attention_weights(Encoder.from_torch(theirs), x)
    assert [*weights] == ["layers.0.attention", "layers.1.attention"]
    for (found,), layer in zip(weights.values(), theirs.layers, strict=True):
        _, expected = layer.self_attn(x, x, x, average_attn_weights=False)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        x = layer(x)


def test_they_are_of_the_models_own_masks_and_mode():
    model = TextClassifier(ClassifierConfig(vocab_size=9, num_layers=1, attention_dropout=0.5)).eval()
    ids = torch.tensor([[5, 6, 7, 0]])
    (weights,) = attention_weights(model, ids)["encoder.layers.0.attention"]
    assert weights[..., 3].eq(0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 4))
    (dropped,) = attention_weights(model.train(), ids)["encoder.layers.0.attention"]
    assert dropped[..., :3].eq(0).any()


def test_an_encoder_decoder_has_three_kinds():
    config = Seq2SeqConfig(source_vocab_size=9, target_vocab_size=9, d_model=16, num_heads=2, num_layers=1)
    model = Seq2SeqTransformer(config).eval()
    weights = attention_weights(model, torch.tensor([[5, 6, 7]]), torch.tensor([[2, 8]]))
    assert {name: maps[0].shape[2:] for name, maps in weights.items()} == {
        "transformer.encoder.layers.0.attention": (3, 3),
        "transformer.decoder.layers.0.attention": (2, 2),
        "transformer.decoder.layers.0.cross_attention": (2, 3),
    }
    assert weights["transformer.decoder.layers.0.attention"][0][..., 0, 1].eq(0).all()


def test_a_layer_that_is_shared_gives_weights_for_each_call():
    config = AlbertConfig(
        vocab_size=9, embedding_size=8, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
    )
    ((name, maps),) = attention_weights(AlbertModel(config).eval(), torch.tensor([[2, 5, 6, 3]])).items()
    assert name.endswith("attention")
    assert len(maps) == 3
    assert not torch.equal(maps[0], maps[1])


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = MultiHeadAttention(8, 2)

    def forward(self, x):
        self.attention(x)
        raise RuntimeError("later")


def test_the_model_is_left_as_it_was():
    model, x = Failing(), torch.randn(1, 3, 8)
    with pytest.raises(RuntimeError, match="later"):
        attention_weights(model, x)
    assert model.attention(x).weights is None
    assert model.training


def test_nothing_is_kept_for_a_gradient():
    (weights,) = attention_weights(Encoder(1, 8, 2, 16), torch.randn(1, 3, 8))["layers.0.attention"]
    assert not weights.requires_grad
