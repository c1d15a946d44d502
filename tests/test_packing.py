"""Products from rearranged weights: the same values, and the weights back to the bit."""

from functools import partial

import pytest
import torch
import transformers
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from torch import nn

from posttrain import models, packing
from posttrain.packing import packed, packed_for_training
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


def is_rearranged(layer):
    """Tell whether a layer multiplies from a rearranged weight; then nobody can use the plain one.

    That one has its shape, by which trainers count, but takes the memory of a single number.
    """
    weight = layer.weight
    assert weight.shape == (layer.out_features, layer.in_features)
    assert ("forward" in vars(layer)) == bool(weight.isnan().all())
    assert weight.untyped_storage().nbytes() == (4 if weight.isnan().all() else weight.nbytes)
    return "forward" in vars(layer)


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
            assert is_rearranged(layers[0]) and is_rearranged(layers[2])
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
        before = [weight.detach().clone() for weight in model.parameters()]
        with packed(model, None):  # it reads nothing then
            assert all(torch.equal(new, old) for new, old in zip(model.parameters(), before))
    assert wrapped(1) == 1
    layers[2].weight.data = torch.randn(16, 200, 1)  # which oneDNN refuses
    with pytest.raises(RuntimeError), packed(layers, lambda model: torch.ones(1)):
        pass
    assert not is_rearranged(layers[0])


class Peeping(nn.Linear):
    """A layer that reads the weight of another one."""

    def __init__(self, other):
        super().__init__(200, 16)
        self.other = other

    def forward(self, values):
        """Multiply with both weights."""
        return super().forward(values) + 0.1 * self.other.weight.mean()


@has_onednn
def test_model_that_cannot_read_the_short_text_is_left_alone(layers):
    """What is wrong with it, if anything, is said by what it is used for."""
    with packed(layers, lambda model: model(torch.ones(1, 7))):
        assert not is_rearranged(layers[0])


@has_onednn
def test_model_that_reads_its_layers_weights_is_left_alone(layers):
    """Otherwise it would compute something else, as Mamba would."""
    model = nn.Sequential(layers[0], Peeping(layers[0])).eval()
    expected = read_row(model)
    with packed(model, read_row):
        assert torch.equal(read_row(model), expected)
        assert not is_rearranged(layers[0])


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


def require_same_logits(model, within):
    """Compare a model's logits with those that it has once it is switched to, as SFT."""
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        expected = model(ids).logits
        with models.switched_to(model, "SFT"):
            assert torch.allclose(model(ids).logits, expected, rtol=0, atol=within)


@has_onednn
def test_mamba_answers():
    """Its own code multiplies with a layer's weight on a CPU."""
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, state_size=8
    )
    require_same_logits(transformers.AutoModelForCausalLM.from_config(config).eval(), within=0)


@has_onednn
@pytest.mark.parametrize("kind", [LoHaConfig, LoKrConfig])
def test_adapters_other_than_lora_answer(kind):
    """They are not merged, and read the shapes of the base's weights."""
    torch.manual_seed(0)
    config = kind(r=4, target_modules=["q_proj", "fc1"], init_weights=False)
    model = get_peft_model(models.load_base(OPT), config, adapter_name="adapter_sft").eval()
    require_same_logits(model, within=1e-4)


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
            assert is_rearranged(layer)
            assert torch.allclose(model(ids).logits, expected, atol=1e-4)
        with model.disable_adapter():
            assert (model(ids).logits - expected).abs().max() > 1e-2


@pytest.fixture
def frozen(layers, monkeypatch):
    """Let small layers count as large, and train a layer between two frozen ones."""
    monkeypatch.setattr(packing, "LARGE", 1)
    layers.requires_grad_(False)
    return nn.Sequential(layers[0], nn.Linear(200, 200), nn.ReLU(), layers[2])


def learn(model):
    """Compute a loss and the gradients of the input and of all trained weights."""
    values = torch.linspace(-1, 1, 96).reshape(1, 2, 48).requires_grad_()
    model.zero_grad()
    outputs = model(values)
    loss = (outputs * torch.linspace(0, 1, outputs.numel()).reshape(outputs.shape)).sum()
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return torch.cat([loss[None], *[each.flatten() for each in (values.grad, *gradients)]])


@has_onednn
def test_training_has_the_gradients_of_the_plain_weights(frozen):
    """Of the input and of trained layers; the frozen weights return to the bit."""
    before = [weight.detach().clone() for weight in frozen.parameters()]
    expected = learn(frozen)
    assert len(expected) == 1 + 96 + 200 * 201
    with packed_for_training(frozen, list(frozen), learn, 1e9):
        assert [is_rearranged(frozen[place]) for place in (0, 1, 3)] == [True, False, True]
        torch.testing.assert_close(learn(frozen), expected, rtol=1e-5, atol=1e-5)
        assert frozen(torch.randn(7, 48).T.contiguous().T).shape == (7, 16)
        frozen(torch.randn(7, 48, requires_grad=True)).sum().backward()  # of a gradient in no order
    assert all(torch.equal(new, old) for new, old in zip(frozen.parameters(), before))
    assert not any("forward" in vars(layer) for layer in frozen)


@has_onednn
def test_training_leaves_alone_what_it_must(frozen, monkeypatch):
    """Small, trained and other layers, and all where the memory does not suffice."""
    needed = 4 * (48 * 200 + 200 * 16)
    with packed_for_training(frozen, list(frozen), learn, needed - 1):
        assert not is_rearranged(frozen[0])
    with packed_for_training(frozen, list(frozen), learn, needed):
        assert is_rearranged(frozen[0])
    monkeypatch.setattr(packing, "LARGE", 48 * 200)
    with packed_for_training(frozen, list(frozen), learn, needed):
        assert is_rearranged(frozen[0]) and not is_rearranged(frozen[3])
    monkeypatch.setattr(packing, "LARGE", 1)
    with packed_for_training(frozen, list(frozen)[:3], learn, needed):
        assert is_rearranged(frozen[0]) and not is_rearranged(frozen[3])
    trained = frozen.requires_grad_()
    with packed_for_training(trained, list(trained), None, needed):  # it reads nothing then
        assert not is_rearranged(trained[0])


@has_onednn
def test_wrong_gradients_undo_the_rearrangement(frozen, monkeypatch):
    """The loss alone does not show them."""
    pack = packing._pack_both_ways

    def pack_wrongly(layer):
        pack(layer)
        weight, bias, _ = layer.forward.args
        other = torch.zeros(layer.in_features, layer.out_features)
        other = torch.ops.mkldnn._reorder_linear_weight(other)
        layer.forward = partial(packing._multiply_both_ways, weight, bias, other)

    monkeypatch.setattr(packing, "_pack_both_ways", pack_wrongly)
    with packed_for_training(frozen, list(frozen), learn, 1e9):
        assert not is_rearranged(frozen[0])
