"""Small random Qwen2.5-Omni models of transformers, with every size odd or unequal, for several test
files."""

import torch
import transformers

from helpers.tensors import randomise
from rrs_jax.testing.qwen2_5_omni import small_thinker_values

THINKER = transformers.Qwen2_5OmniThinkerForConditionalGeneration
WHOLE = transformers.Qwen2_5OmniForConditionalGeneration


def make_thinker(**text) -> transformers.PreTrainedModel:
    model = THINKER(transformers.Qwen2_5OmniThinkerConfig(**small_thinker_values(**text))).float().eval()
    randomise(model)
    model.tie_weights()
    return model


def make_whole(**text) -> transformers.PreTrainedModel:
    """Thinker, talker and vocoder."""
    values = small_thinker_values(**text)
    talker = dict(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        embedding_size=values["text_config"]["hidden_size"],
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [1, 1, 2]},
    )
    dit = dict(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ff_mult=1,
        emb_dim=8,
        head_dim=8,
        num_embeds=20,
        mel_dim=8,
        enc_emb_dim=8,
        enc_dim=8,
        enc_channels=[8, 8, 8, 8, 8],
        enc_attention_channels=4,
        enc_res2net_scale=2,
        enc_se_channels=4,
        look_ahead_layers=[0],
        look_backward_layers=[0],
    )
    vocoder = dict(
        mel_dim=8,
        upsample_initial_channel=16,
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3, 5]],
        upsample_rates=[2],
        upsample_kernel_sizes=[4],
    )
    config = transformers.Qwen2_5OmniConfig(
        thinker_config=values,
        talker_config=talker,
        token2wav_config={"dit_config": dit, "bigvgan_config": vocoder},
    )
    model = WHOLE(config).float().eval()
    randomise(model)
    model.thinker.tie_weights()
    return model


def save_whole(model, path, **options) -> None:
    """Saves the model with the speakers' file, without which the class does not load."""
    model.save_pretrained(path, **options)
    torch.save(
        {"Chelsie": {"bos_token": 1, "cond": torch.zeros(1, 8), "ref_mel": torch.zeros(1, 4, 8)}},
        path / "spk_dict.pt",
    )
