"""Tacotron 2, the attention baseline: Shen et al. 2018, "Natural TTS synthesis by conditioning WaveNet on mel
spectrogram predictions".

Differences from the paper: sizes are options; layer norm replaces batch norm, because padding must not change an
utterance's result; there is no zoneout; a step may give several frames (the reduction factor of Wang et al. 2017,
"Tacotron"); the error is absolute, not squared, as in TacoMamba; guided attention (Tachibana et al. 2018, "Efficiently
trainable text-to-speech system based on deep convolutional networks with guided attention") is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models.lstm import LSTM
from models.padding import length_mask
from models.tts.alignment import monotonic_path
from models.tts.condition import SpeakerCondition
from models.tts.config import MODELS, TextToMelConfig
from models.tts.convolution import ConvLayer
from models.tts.interface import Comparison, Synthesis

KERNEL, ENCODER_LAYERS, POSTNET_LAYERS = 5, 3, 5
LOCATION_KERNEL = 31
PRENET_DROPOUT, PRENET_SEED = 0.5, 0
GUIDE_WIDTH = 0.2  # g of Tachibana et al., equation 6
STOP_WEIGHT = 8.0  # of the last step of an utterance, against 1 for each of the hundreds before it
LONGEST, LONGEST_PER_TOKEN = 1720, 25  # most frames of a synthesis: the greater one; 1720 are 20 s
SMALLEST_SHARE = 1e-8  # of attention, so that its logarithm is finite


class NormalizedConvs(nn.Module):
    """Convolutions with layer norm, activation and dropout, the last one linear if asked: (b, l, c) -> (b, l, c')."""

    def __init__(self, channels: list[int], activation: nn.Module, linear_end: bool, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConvLayer(before, after, KERNEL, causal=False)
            for before, after in zip(channels, channels[1:], strict=False)
        )
        normalized = channels[1:-1] if linear_end else channels[1:]
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in normalized)
        self.activation, self.dropout = activation, nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x, lengths)
            if number < len(self.norms):
                x = self.dropout(self.activation(self.norms[number](x)))
        return x


class Encoder(nn.Module):
    """Embedding, convolutions, bidirectional LSTM: tokens (b, n), lengths (b,) -> (b, n, d_model), 0 on padding."""

    def __init__(self, config: TextToMelConfig, n_symbols: int) -> None:
        super().__init__()
        d_model = config.d_model
        if d_model % 2:
            raise ValueError(f"d_model {d_model} must be even: tacotron2's encoder has one half in each direction")
        self.embedding = nn.Embedding(n_symbols, d_model)
        self.convs = NormalizedConvs([d_model] * (ENCODER_LAYERS + 1), nn.ReLU(), False, config.dropout)
        self.lstm = LSTM(d_model, d_model // 2, batch_first=True, bidirectional=True)
        self.condition = SpeakerCondition(config)

    def forward(self, tokens: Tensor, lengths: Tensor, speaker: Tensor | None) -> Tensor:
        x = self.convs(self.embedding(tokens), lengths)
        packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return self.condition(x, speaker) * length_mask(lengths, tokens.shape[1]).unsqueeze(-1)


class Prenet(nn.Module):
    """Two layers with dropout in synthesis too: mel (b, s, n_mels), keep -> (b, s, d).

    keep (b or 1, s, 2, d), bool, selects the units of each layer that stay; see `draw` and `draw_fixed`.
    """

    def __init__(self, n_mels: int, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.layers = nn.ModuleList([nn.Linear(n_mels, d_model), nn.Linear(d_model, d_model)])

    def forward(self, mel: Tensor, keep: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            mel = F.relu(layer(mel)) * keep[:, :, number] / (1 - PRENET_DROPOUT)
        return mel

    def draw(self, batch: int, steps: int, device: torch.device) -> Tensor:
        """Random units to keep, for training."""
        return torch.rand(batch, steps, 2, self.d_model, device=device) >= PRENET_DROPOUT

    def draw_fixed(self, steps: int, device: torch.device) -> Iterator[Tensor]:
        """Units to keep outside of training, (1, 1, 2, d) for each step: the same for every utterance."""
        generator = torch.Generator().manual_seed(PRENET_SEED)  # of the CPU, for any device
        for _ in range(steps):
            yield (torch.rand(1, 1, 2, self.d_model, generator=generator) >= PRENET_DROPOUT).to(device)


class Memory(NamedTuple):
    """The encoded text, and everything about it that does not change from step to step."""

    values: Tensor  # (b, n, d)
    keys: Tensor  # (b, a, n)
    padding: Tensor  # (b, n) bool


class AttentionState(NamedTuple):
    """State of the attention's recurrence."""

    hidden: Tensor  # (b, d)
    cell: Tensor  # (b, d)
    context: Tensor  # (b, d_model)
    weights: Tensor  # (b, n), of the last step
    total: Tensor  # (b, n), over all steps


class AttentionLSTM(nn.Module):
    """An LSTM that reads the text by location-sensitive attention (Chorowski et al. 2015, section 2.3).

    Location features come from the last weights and from the sum of all weights before. Their convolution and
    projection, both linear, are one convolution here.
    """

    def __init__(self, prenet_dim: int, d_model: int, attention_dim: int, decoder_dim: int) -> None:
        super().__init__()
        self.decoder_dim = decoder_dim
        self.input = nn.Linear(prenet_dim, 4 * decoder_dim)
        self.recurrence = nn.Linear(d_model + decoder_dim, 4 * decoder_dim, bias=False)
        self.query = nn.Linear(decoder_dim, attention_dim, bias=False)
        self.key = nn.Linear(d_model, attention_dim)
        self.location = nn.Conv1d(2, attention_dim, LOCATION_KERNEL, padding=LOCATION_KERNEL // 2, bias=False)
        self.energy = nn.Parameter(torch.empty(attention_dim).uniform_(-(attention_dim**-0.5), attention_dim**-0.5))

    def memory(self, encoded: Tensor, lengths: Tensor) -> Memory:
        """Values, keys and padding of encoded texts (b, n, d_model), lengths (b,)."""
        wide = self.energy.dtype
        keys = self.key(encoded).transpose(1, 2).contiguous()
        return Memory(encoded.to(wide), keys.to(wide), ~length_mask(lengths, encoded.shape[1]))

    def initial_state(self, memory: Memory) -> AttentionState:
        """The state before the first step: zeros."""
        batch, tokens, d_model = memory.values.shape
        sizes = self.decoder_dim, self.decoder_dim, d_model, tokens, tokens
        return AttentionState(*(memory.values.new_zeros(batch, size) for size in sizes))

    def forward(self, x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """Prenet outputs (b, s, p) -> hidden states and contexts (b, s, d + d_model), attention weights (b, s, n)."""
        inputs = self.input(x).to(self.energy.dtype)
        state, outputs, weights = self.initial_state(memory), [], []
        with torch.autocast(x.device.type, enabled=False):  # small matrices gain no speed, long sums lose precision
            for step in inputs.unbind(1):
                state = self.step(step, memory, state)
                outputs += state.hidden, state.context
                weights.append(state.weights)
        return torch.cat(outputs, dim=1).unflatten(1, (len(weights), -1)), torch.stack(weights, dim=1)

    def step(self, gates: Tensor, memory: Memory, state: AttentionState) -> AttentionState:
        """One step; gates (b, 4 d) is `input` of the prenet's output."""
        recurrent = self.recurrence(torch.cat([state.context, state.hidden], dim=1))
        keep, write, show, value = (gates + recurrent).split(self.decoder_dim, dim=1)
        cell = keep.sigmoid() * state.cell + write.sigmoid() * value.tanh()
        hidden = show.sigmoid() * cell.tanh()
        features = self.location(torch.stack([state.weights, state.total], dim=1))  # (b, a, n)
        features.add_(memory.keys).add_(self.query(hidden).unsqueeze(2)).tanh_()  # in place: most memory
        energies = torch.bmm(self.energy.expand(len(features), 1, -1), features).squeeze(1)
        weights = energies.masked_fill(memory.padding, -torch.inf).softmax(dim=1)
        context = (weights.unsqueeze(1) @ memory.values).squeeze(1)
        return AttentionState(hidden, cell, context, weights, state.total + weights)


class Prediction(NamedTuple):
    """Output of the decoder for a batch, mels standardized."""

    before: Tensor  # (b, t, n_mels)
    after: Tensor  # (b, t, n_mels), with the postnet
    stop: Tensor  # (b, s), logits
    weights: Tensor  # (b, s, n), attention


@MODELS.register("tacotron2")
class Tacotron2(nn.Module):
    """Text to mel by attention."""

    can_stream = False
    has_durations = False
    draws_harmonics = False

    def __init__(self, config: TextToMelConfig, n_symbols: int) -> None:
        super().__init__()
        n_mels, d_model, decoder_dim = config.n_mels, config.d_model, config.decoder_dim
        self.n_mels, self.reduction, self.guidance = n_mels, config.reduction, config.guided_attention
        self.register_buffer("mel_mean", torch.zeros(n_mels))
        self.register_buffer("mel_std", torch.ones(n_mels))
        self.encoder = Encoder(config, n_symbols)
        self.prenet = Prenet(n_mels, config.prenet_dim)
        self.attention = AttentionLSTM(config.prenet_dim, d_model, config.attention_dim, decoder_dim)
        self.lstm = LSTM(decoder_dim + d_model, decoder_dim, batch_first=True)
        self.output = nn.Linear(decoder_dim + d_model, self.reduction * n_mels)
        self.stop = nn.Linear(decoder_dim + d_model, 1)
        channels = [n_mels, *[config.postnet_channels] * (POSTNET_LAYERS - 1), n_mels]
        self.postnet = NormalizedConvs(channels, nn.Tanh(), True, config.dropout)

    def set_statistics(self, mean: Tensor, std: Tensor, frames_per_token: float) -> None:
        """Sets the training set's mean and deviation (n_mels,) of log-mels; attention ignores `frames_per_token`."""
        self.mel_mean.copy_(mean)
        self.mel_std.copy_(std)

    def forward(
        self, tokens: Tensor, token_lengths: Tensor, mel: Tensor, mel_lengths: Tensor, speaker: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Losses of a batch as sums over its frames: tokens (b, n), mel (b, t, n_mels) natural log, lengths (b,).

        `loss_sum` is to be minimized per `count` of frames. `mel_sum` is the absolute error in natural-log units,
        averaged over channels; `stop_sum` the cross-entropy of the stop token; `attention_sum` the share of attention
        far from the diagonal. Each step counts as many times as it has frames in the last two.
        """
        x = self._standardize(mel, mel_lengths)
        prediction = self._predict(tokens, token_lengths, x, mel_lengths, speaker)
        valid = length_mask(mel_lengths, mel.shape[1]).unsqueeze(-1)
        before, after = ((part - x).masked_fill(~valid, 0.0).abs() for part in (prediction.before, prediction.after))
        steps = -(-mel_lengths // self.reduction)
        stop = self.reduction * _stop_loss(prediction.stop, steps)
        attention = self.reduction * _off_diagonal(prediction.weights, token_lengths, steps)
        loss = (before.sum() + after.sum()) / self.n_mels + stop + self.guidance * attention
        natural = (after.detach() * self.mel_std).sum() / self.n_mels
        parts = {"mel_sum": natural, "stop_sum": stop.detach(), "attention_sum": attention.detach()}
        return {"loss_sum": loss, "count": mel_lengths.sum(), **parts}

    def _standardize(self, mel: Tensor, lengths: Tensor) -> Tensor:
        padding = ~length_mask(lengths, mel.shape[1]).unsqueeze(-1)
        return ((mel - self.mel_mean) / self.mel_std).masked_fill(padding, 0.0)

    def _predict(
        self, tokens: Tensor, token_lengths: Tensor, x: Tensor, mel_lengths: Tensor, speaker: Tensor | None
    ) -> Prediction:
        """Predicts each frame from the true ones before it, x (b, t, n_mels)."""
        memory = self.attention.memory(self.encoder(tokens, token_lengths, speaker), token_lengths)
        steps = -(-x.shape[1] // self.reduction)
        seen = F.pad(x[:, self.reduction - 1 :: self.reduction], (0, 0, 1, 0))[:, :steps]  # last frame before each step
        if self.training:
            keep = self.prenet.draw(len(x), steps, x.device)
        else:
            keep = torch.cat(list(self.prenet.draw_fixed(steps, x.device)), dim=1)
        read, weights = self.attention(self.prenet(seen, keep), memory)
        frames, stop, _ = self._frames(read, None)
        before = frames[:, : x.shape[1]]
        return Prediction(before, before + self.postnet(before, mel_lengths), stop, weights)

    def _frames(
        self, read: Tensor, state: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """The second LSTM on what was read (b, s, d + d_model): frames (b, s r, n_mels), stop logits (b, s), state."""
        x, state = self.lstm(read, state)
        x = torch.cat([x, read[:, :, self.attention.decoder_dim :]], dim=2)
        return self.output(x).unflatten(2, (self.reduction, -1)).flatten(1, 2), self.stop(x).squeeze(2), state

    @torch.no_grad()
    def compare(
        self, tokens: Tensor, token_lengths: Tensor, mel: Tensor, mel_lengths: Tensor, speaker: Tensor | None = None
    ) -> Comparison:
        """Mels predicted from the true frames, and durations of the best monotonic path through the attention.

        A text with more tokens than frames has no such path; each of its frames counts for the token with most weight.
        """
        x = self._standardize(mel, mel_lengths)
        prediction = self._predict(tokens, token_lengths, x, mel_lengths, speaker)
        weights = prediction.weights.repeat_interleave(self.reduction, dim=1)[:, : mel.shape[1]]  # (b, t, n)
        weights = weights * length_mask(mel_lengths, mel.shape[1]).unsqueeze(-1)
        durations = _peaks(weights)
        enough = mel_lengths >= token_lengths
        if enough.any():
            score = weights[enough].clamp(min=SMALLEST_SHARE).log().transpose(1, 2)
            durations[enough] = monotonic_path(score, token_lengths[enough], mel_lengths[enough])
        return Comparison(prediction.after * self.mel_std + self.mel_mean, durations)

    @torch.no_grad()
    def synthesize(self, tokens: Tensor, speaker: Tensor | None = None, pace: float = 1.0) -> Synthesis:
        """The mel of one text, tokens (1, n), step by step until the probability of the stop token exceeds one half.

        It is cut off after 20 s or 25 frames per token, whichever is more. A token's duration is the number of frames
        in which it has most weight. `ValueError` for a pace other than 1.
        """
        if pace != 1.0:
            raise ValueError("Tacotron 2 predicts no durations, so its pace must be 1")
        limit = max(LONGEST, LONGEST_PER_TOKEN * tokens.shape[1])
        before, weights, ended = self._speak(tokens, speaker, -(-limit // self.reduction))
        lengths = torch.tensor([before.shape[1]], device=tokens.device)
        mel = (before + self.postnet(before, lengths)) * self.mel_std + self.mel_mean
        alignment = weights.repeat_interleave(self.reduction, dim=1)
        return Synthesis(mel[0], _peaks(alignment)[0], alignment[0], truncated=not ended)

    def _speak(self, tokens: Tensor, speaker: Tensor | None, limit: int) -> tuple[Tensor, Tensor, bool]:
        """At most `limit` steps: frames (1, t, n_mels) before the postnet, attention (1, s, n), True if it ended."""
        lengths = torch.tensor([tokens.shape[1]], device=tokens.device)
        memory = self.attention.memory(self.encoder(tokens, lengths, speaker), lengths)
        state, lstm_state = self.attention.initial_state(memory), None
        last, frames, weights = self.mel_mean.new_zeros(1, 1, self.n_mels), [], []
        for keep in self.prenet.draw_fixed(limit, tokens.device):
            gates = self.attention.input(self.prenet(last, keep)).squeeze(1)
            state = self.attention.step(gates, memory, state)
            read = torch.cat([state.hidden, state.context], dim=1).unsqueeze(1)
            new, stop, lstm_state = self._frames(read, lstm_state)
            frames.append(new)
            weights.append(state.weights)
            last, ended = new[:, -1:], stop.item() > 0
            if ended:
                break
        return torch.cat(frames, dim=1), torch.stack(weights, dim=1), ended

    def stream(
        self, tokens: Tensor, speaker: Tensor | None = None, pace: float = 1.0, chunk: int = 32
    ) -> Iterator[Tensor]:
        """Raises ValueError: the postnet looks ahead."""
        raise ValueError("Tacotron 2 cannot stream: its postnet looks ahead")

    def predicted_lengths(self, tokens: Tensor, token_lengths: Tensor, speaker: Tensor | None = None) -> None:
        """None: the length of speech is not known before its end."""
        return None


def _stop_loss(logits: Tensor, steps: Tensor) -> Tensor:
    """Cross-entropy of the stop token, summed over valid steps: logits (b, s), steps (b,) -> scalar."""
    number = torch.arange(logits.shape[1], device=logits.device)
    last = (number == steps.unsqueeze(1) - 1).to(logits.dtype)
    weight = logits.new_tensor(STOP_WEIGHT)
    losses = F.binary_cross_entropy_with_logits(logits, last, reduction="none", pos_weight=weight)
    return losses.masked_fill(number >= steps.unsqueeze(1), 0.0).sum()


def _off_diagonal(weights: Tensor, token_lengths: Tensor, steps: Tensor) -> Tensor:
    """Attention away from the diagonal (Tachibana et al. 2018, equation 6), summed over valid steps: a scalar.

    weights (b, s, n), token_lengths (b,), steps (b,). Each step costs between 0 and 1.
    """
    _, length, tokens = weights.shape
    token = torch.arange(tokens, device=weights.device) / token_lengths.unsqueeze(1)
    step = torch.arange(length, device=weights.device) / steps.unsqueeze(1)
    distance = step.unsqueeze(2) - token.unsqueeze(1)
    penalty = 1 - (-distance.square() / (2 * GUIDE_WIDTH**2)).exp()
    return (weights * penalty).masked_fill(~length_mask(steps, length).unsqueeze(-1), 0.0).sum()


def _peaks(weights: Tensor) -> Tensor:
    """Frames in which each token has most weight: weights (b, t, n), 0 on padding -> (b, n) int64."""
    peaks = F.one_hot(weights.argmax(2), weights.shape[2])
    return (peaks * (weights.amax(2, keepdim=True) > 0)).sum(1)
