"""The zoo behind Hugging Face's ``AttentionInterface``: any of its mechanisms in a pretrained model, in three lines.

    >>> from attention_zoo.integrations.transformers import register
    >>> register(smyrf={"rounds": 4, "cluster_size": 32})
    >>> model = AutoModel.from_pretrained("bert-base-uncased", attn_implementation="cab_smyrf")

A model hands over q, k, v after its projections and position rotations; a core of the zoo mixes the values. What comes
with them is folded in (another scale into q, grouped keys repeated), or refused in one line where a core has no place
for it: a bias, a window, packed sequences, sinks, a cap. What a mask says is settled where it is made: the mask
function that is registered beside the attention returns key padding alone, ``[B, 1, 1, Lk]``, with causality in its
dtype; masks from elsewhere are read by their values.

transformers takes a registered name for any model, also for one that computes its attention without asking the
interface, and says nothing. :func:`attach` refuses such a model, and verifies at its first forward pass that every
attention of it came here; :func:`check` does the same on inputs of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from attention_zoo import eligibility
from attention_zoo._standin import Choice
from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.registry import names

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    from attention_zoo.integrations._hf_attention import ARRIVED, AttentionFunction
    from attention_zoo.integrations._hf_masks import key_padding
except ImportError as error:
    raise ImportError(
        "attention_zoo.integrations.transformers needs transformers: pip install 'cab-attention[transformers]'"
    ) from error

PREFIX = "cab_"
_REGISTERED: dict[str, Choice] = {}  # by mechanism
_ATTACHED: dict[tuple[Any, ...], str] = {}  # names of what was attached, by mechanism and options


def register(*, cross: Pattern | str | None = None, **options: Mapping[str, Any]) -> list[str]:
    """Makes ``attn_implementation="cab_<mechanism>"`` known to transformers, for all mechanisms; returns the names.

    What an earlier call said of a mechanism stays until it is named again; models that are loaded already follow.

    Args:
        cross: the pattern of attention to a second sequence; causal where no call says otherwise.
        options: of mechanisms, by name: ``register(smyrf={"rounds": 2})``; the defaults where no call says otherwise.

    Raises :class:`UnknownName`, ``TypeError``, ``ValueError`` or :class:`Unsupported`, for what is given. A mechanism
    that cannot stand in (:mod:`attention_zoo.eligibility`) is known too, and says why when it is called.
    """
    for name, chosen in options.items():
        if not isinstance(chosen, Mapping):
            raise TypeError(f"register({name}={chosen!r}): the options of a mechanism are a dict, as {{'rounds': 2}}")
    asked = [*options, *(name for name in names() if name not in options and eligibility.standing(name).eligible)]
    found: dict[str, Choice] = {}
    for name in asked:
        before = _REGISTERED.get(name) or Choice.of(name, options.get(name, {}))
        found[name] = Choice.of(name, options.get(name, before.options), cross or before.cross)
    for name, choice in found.items():
        if choice != _REGISTERED.get(name):  # else what was drawn for its layers stays
            _put(PREFIX + name, choice)
    _REGISTERED.update(found)
    for name in set(names()) - _REGISTERED.keys():
        AttentionInterface.register(PREFIX + name, _refuse(name))
        AttentionMaskInterface.register(PREFIX + name, _refuse(name))
    return [PREFIX + name for name in names() if name in _REGISTERED]


def attach(
    model: nn.Module, to: str, *, cross: Pattern | str = Pattern.CAUSAL_CROSS, partly: bool = False, **options: Any
) -> PreTrainedModel:
    """Puts ``to`` in place of the attention of a transformers model, and returns the model.

    At the first forward pass it is verified, as in :func:`check`, that every attention of the model came here, or, with
    ``partly``, one of them (a head that pools by an attention of its own may stay as it is).
    """
    if not isinstance(model, PreTrainedModel):
        raise Unsupported(f"{type(model).__name__} is no model of transformers; use attention_zoo.convert.convert")
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and not part._can_set_attn_implementation():
            raise Unsupported(
                f"{type(part).__name__} computes its attention itself, without transformers' AttentionInterface, so "
                "nothing can be put in its place"
            )
    choice = Choice.of(to, options, cross)
    # Numbered, since transformers looks for words such as "flash" in a name, and an option may hold one.
    known = (to, choice.cross, *sorted(choice.options.items()))
    implementation = _ATTACHED.setdefault(known, f"{PREFIX}{to}#{len(_ATTACHED) + 1}")
    if implementation not in AttentionInterface._global_mapping:
        _put(implementation, choice)
    model.set_attn_implementation(implementation)
    watch = _Watch(model, partly)
    watch.hooks.append(model.register_forward_hook(watch))
    return model


def check(model: nn.Module, *inputs: Any, **named: Any) -> list[str]:
    """The names of the attention modules of ``model`` whose calls come here, when it is run on these inputs.

    Raises :class:`Unsupported` if there is none, or if an attention module ran without any call from it, from a part of
    it or from what it is part of.
    """
    watch = _Watch(model)
    try:
        with torch.no_grad():
            model(*inputs, **named)
    finally:
        watch.stop()
    return watch.arrived()


class _Watch:
    """Which attention modules of a model ran, and from which a call came here."""

    def __init__(self, model: nn.Module, partly: bool = False) -> None:
        self.model = model
        self.partly = partly
        self.ran: set[str] = set()
        self.modules = dict(model.named_modules())
        ARRIVED.difference_update(self.modules.values())
        self.hooks = [
            module.register_forward_pre_hook(partial(self._see, name))
            for name, module in self.modules.items()
            if name and "attention" in type(module).__name__.lower()
        ]

    def _see(self, name: str, *_: object) -> None:
        self.ran.add(name)

    def __call__(self, *_: object) -> None:
        """As the hook of the first forward pass; an object, so that a model can be copied and saved before it."""
        self.stop()
        self.arrived()

    def stop(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def arrived(self) -> list[str]:
        found = [name for name, module in self.modules.items() if module in ARRIVED]
        if not found:
            raise Unsupported(
                f"no attention of {type(self.model).__name__} came here: it computes its attention itself, or its "
                f"attn_implementation is not one of {PREFIX}*"
            )
        parts = [f"{name}." for name in found]
        past = sorted(
            name
            for name in self.ran
            if not any(f"{name}.".startswith(part) or part.startswith(f"{name}.") for part in parts)
        )
        if past and not self.partly:
            kinds = sorted({type(self.modules[name]).__name__ for name in past})
            raise Unsupported(
                f"{len(past)} modules of {', '.join(kinds)} computed their attention themselves, such as {past[0]}"
            )
        return found


def _put(implementation: str, choice: Choice) -> None:
    AttentionInterface.register(implementation, AttentionFunction(choice))
    AttentionMaskInterface.register(implementation, key_padding)


def _refuse(name: str) -> Callable[..., Any]:
    def refused(*_: object, **__: object) -> Any:
        eligibility.require(name)

    return refused
