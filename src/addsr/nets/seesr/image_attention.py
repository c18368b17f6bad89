"""SeeSR's image cross-attention: a second transformer behind each text transformer.

Same shape as the text one (self-attention, cross-attention, feed-forward, residual), but its
cross-attention looks at the tagger's image tokens. Hooks run it, so diffusers' networks stay as
they are and take one more argument, `image_tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn

from addsr.errors import InputError, ModelError

FLAG = "use_image_cross_attention"
"""In a published config.json."""
WIDTH = "image_cross_attention_dim"
"""The tokens' width, in a config.json of ours where it is not the published 512."""
IMAGE_WIDTH = 512


def add_image_attentions(net: Any, width: int = IMAGE_WIDTH) -> nn.Module:
    """`net`, a U-Net or ControlNet of diffusers, with a fresh image transformer at each place.

    They start at the usual random numbers and not as identities, like the published ones. From now
    on `net(...)` needs `image_tokens` `(1 or B, tokens, width)`. A copy of the network follows its
    own tokens and layers.

    Raises:
        ModelError: it has them already, or has no transformers of one context to follow.
    """
    if image_attentions_of(net):
        raise ModelError("this network has image attentions already")
    blocks = [(name, block) for name, block in _blocks(net) if hasattr(block, "attentions")]
    if not blocks:
        raise ModelError("this network has no text attention that image attention could follow")
    parameter = next(net.parameters())
    tokens = _Tokens(width)
    for name, block in blocks:
        second = nn.ModuleList()
        for attention in block.attentions:
            config = getattr(attention, "config", {})
            if "cross_attention_dim" not in config:
                raise ModelError(f"{name}: {type(attention).__name__} cannot be followed")
            # not from_config: it takes arguments given by position for defaults left alone
            shape = {k: v for k, v in config.items() if not k.startswith("_")}
            own = type(attention)(**{**shape, "cross_attention_dim": width})
            second.append(own.to(parameter))
            attention.register_forward_hook(_Follow(own, tokens))
        block.image_attentions = second
    net.register_forward_pre_hook(tokens.take, with_kwargs=True)
    net.register_forward_hook(tokens.drop, always_call=True)
    more = {} if width == IMAGE_WIDTH else {WIDTH: width}
    net.register_to_config(**{FLAG: True}, **more)
    return cast("nn.Module", net)


def image_attentions_of(net: nn.Module) -> dict[str, nn.Module]:
    """The image transformers by their published names, such as mid_block.image_attentions.0."""
    return {
        f"{name}.image_attentions.{k}": module
        for name, block in _blocks(net)
        for k, module in enumerate(getattr(block, "image_attentions", ()))
    }


def _blocks(net: Any) -> Iterator[tuple[str, Any]]:
    for half in ("down_blocks", "mid_block", "up_blocks"):
        found = getattr(net, half, None)
        if isinstance(found, nn.ModuleList):
            yield from ((f"{half}.{i}", block) for i, block in enumerate(found))
        elif found is not None:
            yield half, found


class _Tokens:
    """The image tokens of the run that a network is in; its methods are the network's hooks.

    Objects and not closures, for `deepcopy` of a network copies them along with it.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.current: Tensor | None = None

    def take(
        self, _net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Keeps `image_tokens` of a call, which diffusers does not know, for the transformers."""
        rest = dict(kwargs)
        tokens = rest.pop("image_tokens", None)
        sample: Tensor = args[0] if args else rest["sample"]
        if tokens is None:
            raise InputError("image_tokens: missing; give the image tagger's (B, tokens, width)")
        shape = tuple(tokens.shape)
        if tokens.ndim != 3 or shape[2] != self.width or shape[0] not in (1, len(sample)):
            raise InputError(
                f"image_tokens: {shape} does not fit; give (1 or {len(sample)}, tokens, "
                f"{self.width})"
            )
        self.current = tokens.expand(len(sample), -1, -1)
        return args, rest

    def drop(self, *_: object) -> None:
        self.current = None


class _Follow:
    """Hook of a text transformer: its output goes through the image transformer."""

    def __init__(self, attention: nn.Module, tokens: _Tokens) -> None:
        self.attention = attention
        self.tokens = tokens

    def __call__(self, _text: nn.Module, _inputs: object, output: Any) -> Any:
        # diffusers' blocks ask for a tuple of one tensor, and get one
        context = self.tokens.current
        return self.attention(output[0], encoder_hidden_states=context, return_dict=False)
