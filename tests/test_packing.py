"""Products from rearranged weights: the same values, and the weights back to the bit."""

import pytest
import torch
import transformers
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import nn

from posttrain import models
from posttrain.packing import packed
from tests.conftest import HUB

OPT = HUB / "opt"
has_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)


@pytest.fixture
def layers():
    """Build two linear layers, one of them without a bias."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 200), nn.ReLU(), nn.Linear(200, 16, bias=False)).eval()


def read_row(layers):
    """Let the layers compute something."""
    return layers(torch.ones(1, 48))


@has_onednn
@pytest.mark.parametrize("shape", [(1, 48), (5, 48), (2, 33, 48)])
def test_values_are_those_of_the_plain_weights(layers, shape):
    """Rows alone, several rows, and texts of a batch."""
    values = torch.randn(shape)
    with torch.no_grad():
        expected = layers(values)
        with packed(layers, lambda model: model(values)):
            # Otherwise the plain weights were used, or a second copy is in memory.
            assert all(layers[place].weight.numel() == 0 for place in (0, 2))
            assert torch.allclose(layers(values), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fails", [True, False])
def test_weights_return_to_the_bit_and_can_be_trained(layers, fails):
    """Also after a failure, and where the values were computed in inference mode."""
    before = [weight.detach().clone() for weight in layers.parameters()]
    try:
        with torch.inference_mode(), packed(layers, read_row):
            layers(torch.randn(3, 48))
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert all(torch.equal(new, old) for new, old in zip(layers.parameters(), before))
    assert not any("forward" in vars(layer) for layer in layers)
    layers(torch.randn(3, 48)).sum().backward()
    assert all(weight.grad is not None for weight in layers.parameters())


@has_onednn
def test_shared_and_other_weights_are_left_alone(layers):
    """The weight of embeddings and head, other precisions, and layers with a forward of their own.

    An error while weights are rearranged leaves none of them behind.
    """
    tied = nn.Sequential(nn.Embedding(16, 16), nn.Linear(16, 16, bias=False))
    tied[1].weight = tied[0].weight
    wrapped = nn.Linear(8, 8)
    wrapped.forward = lambda values: values
    for model in (tied, nn.Linear(8, 8).bfloat16(), wrapped, nn.Bilinear(2, 2, 2)):
        shapes = [weight.shape for weight in model.parameters()]
        with packed(model, None):  # it reads nothing then
            assert [weight.shape for weight in model.parameters()] == shapes
    assert wrapped(1) == 1
    layers[2].weight.data = torch.randn(16, 200, 1)  # which oneDNN refuses
    with pytest.raises(RuntimeError), packed(layers, lambda model: None):
        pass
    assert layers[0].weight.shape == (200, 48)


class Peeping(nn.Linear):
    """A layer that reads the weight of another one, or is 0.1 off without it."""

    def __init__(self, other, raises):
        super().__init__(200, 16)
        self.other, self.raises = other, raises

    def forward(self, values):
        """Multiply with a weight."""
        if self.raises:
            return values @ self.other.weight @ self.other.weight.T[:, :16]
        return super().forward(values) + 0.1 * (self.other.weight.numel() == 0)


@has_onednn
@pytest.mark.parametrize("raises", [True, False])
def test_model_that_reads_its_layers_weights_is_left_alone(layers, raises):
    """Whether it would fail without them or compute something else, as Mamba and LoHa would."""
    model = nn.Sequential(layers[0], Peeping(layers[0], raises)).eval()
    expected = read_row(model)
    with packed(model, read_row):
        assert torch.equal(read_row(model), expected)
        assert layers[0].weight.shape == (200, 48)


@has_onednn
def test_interruption_waits_until_all_weights_are_back(layers, monkeypatch):
    """A Ctrl-C while the first weight is put back."""
    before = [weight.detach().clone() for weight in layers.parameters()]
    to_dense, calls = torch.Tensor.to_dense, []

    def interrupt_once(tensor):
        calls.append(tensor)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return to_dense(tensor)

    with pytest.raises(KeyboardInterrupt), packed(layers, read_row):
        monkeypatch.setattr(torch.Tensor, "to_dense", interrupt_once)
    assert len(calls) == 3
    assert all(torch.equal(new, old) for new, old in zip(layers.parameters(), before))


def require_same_logits(model):
    """Compare a model's logits with those that it has once it is switched to, as SFT."""
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with models.switched_to(model, "SFT"):
            assert torch.equal(model(ids).logits, expected)


@has_onednn
def test_mamba_answers():
    """Its own code multiplies with a layer's weight on a CPU."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=8
    )
    require_same_logits(transformers.AutoModelForCausalLM.from_config(config).eval())


@has_onednn
@pytest.mark.parametrize("kind", [LoHaConfig, LoKrConfig])
def test_adapters_that_read_the_bases_weights_answer(kind):
    """Those that are not LoRA are not merged either."""
    torch.manual_seed(0)
    config = kind(r=4, target_modules=["q_proj", "fc1"], init_weights=False)
    model = get_peft_model(models.load_base(OPT), config, adapter_name="adapter_sft").eval()
    require_same_logits(model)


@has_onednn
def test_merged_adapter_is_what_is_rearranged():
    """A model that is switched to answers with its adapter from rearranged weights."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    model = get_peft_model(models.load_base(OPT), config, adapter_name="adapter_sft").eval()
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with models.switched_to(model, "SFT"):
            layer = model.base_model.model.model.decoder.layers[0].fc1.base_layer
            assert layer.weight.numel() == 0
            assert torch.allclose(model(ids).logits, expected, atol=1e-4)
        with model.disable_adapter():
            assert (model(ids).logits - expected).abs().max() > 1e-2
