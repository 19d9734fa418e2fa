"""Small random Qwen2.5-Omni models of transformers, with every size odd or unequal, for several test
files."""

import torch
import transformers

from helpers.tensors import randomise

AUDIO = 130
THINKER = transformers.Qwen2_5OmniThinkerForConditionalGeneration
WHOLE = transformers.Qwen2_5OmniForConditionalGeneration


def thinker_values(**text) -> dict:
    """A thinker's config: windows of 2 * 10 frames, three rotary sections of unequal width."""
    text = (
        dict(
            hidden_size=48,
            intermediate_size=72,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=140,
            rms_norm_eps=1e-6,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 5000.0, "mrope_section": [1, 2, 3]},
        )
        | text
    )
    audio = dict(
        d_model=24,
        encoder_layers=2,
        encoder_attention_heads=3,
        encoder_ffn_dim=40,
        num_mel_bins=12,
        n_window=10,
        output_dim=text["hidden_size"],
    )
    vision = dict(
        depth=1,
        hidden_size=16,
        intermediate_size=20,
        num_heads=2,
        out_hidden_size=text["hidden_size"],
        fullatt_block_indexes=[0],
    )
    return dict(
        audio_config=audio,
        text_config=text,
        vision_config=vision,
        audio_token_index=AUDIO,
        image_token_index=131,
        video_token_index=132,
        audio_start_token_id=133,
        audio_end_token_id=134,
        vision_start_token_id=135,
        vision_end_token_id=136,
        pad_token_id=0,
        tie_word_embeddings=text["tie_word_embeddings"],
    )


def make_thinker(**text) -> transformers.PreTrainedModel:
    model = THINKER(transformers.Qwen2_5OmniThinkerConfig(**thinker_values(**text))).float().eval()
    randomise(model)
    model.tie_weights()
    return model


def make_whole(**text) -> transformers.PreTrainedModel:
    """Thinker, talker and vocoder."""
    values = thinker_values(**text)
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
    """With the speakers' file, without which the class does not load."""
    model.save_pretrained(path, **options)
    torch.save(
        {"Chelsie": {"bos_token": 1, "cond": torch.zeros(1, 8), "ref_mel": torch.zeros(1, 4, 8)}},
        path / "spk_dict.pt",
    )
