"""ControlNet: a copy of a U-Net's first half that reads a hint (Zhang et al. 2023, arXiv:2302.05543)."""

from keras import ops

from kerasdiff.models.blocks import residual_shapes
from kerasdiff.models.control_configs import ControlNetConfig
from kerasdiff.models.layers import Conv, silu
from kerasdiff.models.unet import UNetHalf, as_many


class ControlNet(UNetHalf):
    """Noisy latents, timestep, text and hint to what is added to a U-Net's skip connections and its middle.

    Inputs are those of `UNet`, and a `hint` (B, h, w, widths[0]) as `encode` makes it. The result is a list of the
    shapes `blocks.residual_shapes`, with the rows of the context.
    """

    def __init__(self, config: ControlNetConfig, **kwargs):
        super().__init__(config.unet, **{"name": "controlnet", **kwargs})
        self.config, hint, channels = config, "controlnet_cond_embedding", config.hint_widths[0]
        self._add_inputs()
        self.hint_layers = [
            self.add(Conv, channels, padding=1, in_channels=config.hint_channels, name=f"{hint}.conv_in")
        ]
        for index, width in enumerate(config.hint_widths[1:]):
            for place, (outputs, strides) in enumerate(((channels, 1), (width, 2))):
                self.hint_layers.append(
                    self.add(
                        Conv,
                        outputs,
                        strides=strides,
                        padding=1,
                        in_channels=channels,
                        name=f"{hint}.blocks.{2 * index + place}",
                    )
                )
            channels = width
        width = config.unet.widths[0]
        self.hint_layers.append(self.add(Conv, width, padding=1, in_channels=channels, name=f"{hint}.conv_out"))
        *skips, middle = (shape[-1] for shape in residual_shapes(config.unet, 1, 1))
        names = [f"controlnet_down_blocks.{index}" for index in range(len(skips))]
        self.outputs = [
            self.add(Conv, width, 1, in_channels=width, name=name)
            for width, name in zip((*skips, middle), (*names, "controlnet_mid_block"), strict=True)
        ]

    def encode(self, pictures):
        """Hints from 0 to 1 (K, height, width, hint_channels), in RGB, to (K, h, w, widths[0])."""
        x = ops.flip(pictures, axis=-1) if self.config.channel_order == "bgr" else pictures
        x = ops.cast(x, self.compute_dtype)
        for layer in self.hint_layers[:-1]:
            x = silu(layer(x))
        return self.hint_layers[-1](x)

    def call(self, latents, timesteps, context, hint, guidance=None, pooled=None, time_ids=None):
        time = self._time(timesteps, guidance, pooled, time_ids)
        context = ops.cast(context, self.compute_dtype)
        x = self.conv_in(latents)
        skips = [as_many(x + ops.cast(hint, x.dtype), time)]
        self._descend(0, len(self.down), skips, time, context)
        reached = [*skips, self._middle(skips[-1], time, context)]
        residuals = [as_many(layer(x), context) for layer, x in zip(self.outputs, reached, strict=True)]
        if self.config.global_pool:
            means = [ops.mean(x, axis=(1, 2), keepdims=True) for x in residuals]
            residuals = [ops.broadcast_to(mean, x.shape) for mean, x in zip(means, residuals, strict=True)]
        return residuals
