import pytest
import torch
from torch import nn

from attar.errors import ModelError
from distill.training.packing_check import check_examples_stay_apart


def test_todays_attention_keeps_packed_examples_apart(tiny_model):
    check_examples_stay_apart(tiny_model, 97)


def test_a_model_that_mixes_its_rows_is_refused(make_model):
    model = make_model()

    class Leaky(nn.Module):
        """Attention that ignores where examples begin: a running mean over the whole row."""

        def forward(self, hidden_states, **_):
            counts = torch.arange(1, hidden_states.shape[1] + 1).view(1, -1, 1)
            return hidden_states.cumsum(1) / counts, None

    model.model.layers[0].self_attn = Leaky()
    with pytest.raises(ModelError, match="packing: false"):
        check_examples_stay_apart(model, 97)
