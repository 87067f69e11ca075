"""An encoder-decoder Transformer over tokens, with a slot for every attention. Knows nothing of data sets.

    source -> embedding + position -> encoder blocks (NS) -> LayerNorm
    target -> embedding + position -> decoder blocks (CS over the target, CC to the source) -> LayerNorm -> logits

After Vaswani et al., "Attention Is All You Need" (NeurIPS 2017, arXiv:1706.03762), section 3, with pre-norm blocks and
learned positions. One matrix embeds source and target and reads the logits out (their section 3.4).
Shape letters: B batch, Ls and Lt lengths of source and target, E width, V vocabulary.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.layers import DecoderBlock, LearnedPositions, SelfAttentionBlock


class EncoderDecoder(nn.Module):
    """The summarisation backbone.

    Args:
        slots: attention factories; asked for NS (encoder), CS (decoder over the target) and CC (target to source).
        output_bias: [V] initial bias of the logits: log-probabilities of the tokens spare the model learning them.
        pad: the token that fills up sources.
        source_length, target_length: the largest Ls and Lt.
        width, heads, hidden: E, attention heads, inner width of the feed-forward layers.
        encoder_layers, decoder_layers: numbers of blocks.
        dropout: probability.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        output_bias: Float[Tensor, " V"],
        pad: int,
        source_length: int,
        target_length: int,
        width: int,
        heads: int,
        hidden: int,
        encoder_layers: int,
        decoder_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.pad = pad
        self.embedding = nn.Embedding(len(output_bias), width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)  # logits of unit variance at the start
        self.source_positions = LearnedPositions(source_length, width)
        self.target_positions = LearnedPositions(target_length, width)
        self.dropout = nn.Dropout(dropout)
        self.encoder = nn.ModuleList(
            SelfAttentionBlock(slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=source_length), hidden, dropout)
            for _ in range(encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            DecoderBlock(
                slots[Pattern.CAUSAL_SELF](width, heads, max_length=target_length),
                slots[Pattern.CAUSAL_CROSS](width, heads, max_length=target_length, max_length_key=source_length),
                hidden,
                dropout,
            )
            for _ in range(decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.output_bias = nn.Parameter(output_bias.float().clone())

    def forward(
        self,
        source: Int[Tensor, "B Ls"],
        decoder_inputs: Int[Tensor, "B Lt"],
        keep: Bool[Tensor, "B Lt"] | None = None,
    ) -> Float[Tensor, "*positions V"]:
        """Logits of the next token at every target position, [B, Lt, V]; with ``keep``, at the kept ones only, [N, V].

        Padding in the target needs no mask: it comes last, and no position looks ahead.
        """
        padding = source == self.pad
        encoded = self.dropout(self.source_positions(self.embedding(source)))
        for block in self.encoder:
            encoded = block(encoded, key_padding_mask=padding)
        encoded = self.encoder_norm(encoded)
        x = self.dropout(self.target_positions(self.embedding(decoder_inputs)))
        for block in self.decoder:
            x = block(x, encoded, source_key_padding_mask=padding)
        x = self.decoder_norm(x)
        return nn.functional.linear(x if keep is None else x[keep], self.embedding.weight, self.output_bias)
