"""The editor's network: Stable Diffusion's layout, small, with self-attention at all three resolutions."""

from diffusers import UNet2DConditionModel

from training.text import WIDTH


def build_unet() -> UNet2DConditionModel:
    """5.4 million parameters: noisy latent and image latent in (8 channels), prediction out (4), fresh weights."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        # Numbers of heads (SD1.5's misnomer); few, for on a CPU the exponentials are what costs.
        attention_head_dim=(1, 3, 4),
        norm_num_groups=16,
    )
