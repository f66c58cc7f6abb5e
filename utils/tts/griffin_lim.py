"""Griffin-Lim: audio from log-mels without a trained vocoder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.features.mel import checked_mel, import_torchaudio
from utils.features.recipe import MelRecipe

GRIFFIN_LIM = "griffin-lim"
ITERATIONS = 32
MOMENTUM = 0.99
UNMIX_STEPS = 20


class GriffinLim:
    """The fast Griffin-Lim algorithm (Perraudin, Balazs and Søndergaard 2013) on the CPU, for any recipe.

    The phases start at zero, so the same mels give the same samples; random phases were no better. Audio whose peak
    exceeds 1 is scaled to a peak of 1. `UserError` for a recipe whose frames overlap by less than half.
    """

    name = GRIFFIN_LIM
    can_stream = False

    def __init__(self, recipe: MelRecipe, iterations: int = ITERATIONS) -> None:
        if 2 * recipe.hop_length > recipe.win_length:
            raise UserError(
                "Griffin-Lim needs frames that overlap by half or more, and the mel recipe has "
                f"a hop_length of {recipe.hop_length} with a win_length of {recipe.win_length}"
            )
        self.recipe, self.iterations = recipe, iterations
        self._functional = import_torchaudio().functional
        self._window = torch.hann_window(recipe.win_length)
        self._filters = self._functional.melscale_fbanks(
            n_freqs=recipe.n_fft // 2 + 1,
            f_min=recipe.f_min,
            f_max=recipe.f_max,
            n_mels=recipe.n_mels,
            sample_rate=recipe.sample_rate,
            norm=None if recipe.mel_norm == "none" else recipe.mel_norm,
            mel_scale=recipe.mel_scale,
        )  # (n_fft / 2 + 1, n_mels)
        # The most that audio within -1..1 can have: a bin of its spectrum is at most the sum of the window.
        self._ceiling = (self._filters.sum(0) * self._window.sum() ** recipe.power).log()
        # Frames added before and after, because torch cuts n_fft // 2 samples off both ends.
        self._margin = 1 + math.ceil(recipe.n_fft // 2 / recipe.hop_length)

    @torch.no_grad()
    def __call__(self, mel: np.ndarray) -> np.ndarray:
        mel = checked_mel(mel, self.recipe)
        if len(mel) == 0:
            return np.zeros(0, np.float32)
        # Mirrored frames, because the recipe reflects the audio at its ends.
        mirrored = np.pad(mel, ((self._margin, self._margin), (0, 0)), mode="symmetric")
        waveform = self._functional.griffinlim(
            self.magnitudes(torch.from_numpy(mirrored))[None],
            window=self._window,
            n_fft=self.recipe.n_fft,
            hop_length=self.recipe.hop_length,
            win_length=self.recipe.win_length,
            power=1.0,
            n_iter=self.iterations,
            momentum=MOMENTUM,
            length=None,
            rand_init=False,
        )[0]
        # torchaudio centers frame t on sample t * hop_length; the recipe's first frame is centered on this one.
        center = self.recipe.n_fft // 2 - self.recipe.pad[0]
        start = self._margin * self.recipe.hop_length - center
        samples = waveform[start : start + len(mel) * self.recipe.hop_length]
        return (samples / samples.abs().max().clamp_min(1.0)).numpy()

    def magnitudes(self, mel: Tensor) -> Tensor:
        """Non-negative magnitudes (n_fft / 2 + 1, t) whose log-mels approximate `mel` (t, n_mels).

        Multiplicative updates that minimize the generalized Kullback-Leibler divergence (Lee and Seung 2001, equation
        5), which weights errors relative to the energy, as log-mels do. Each bin starts at the weighted mean of its
        bands, which keeps the spectrum smooth between the bands.
        """
        floor = torch.tensor(math.log(self.recipe.log_floor))
        energies = mel.clamp_min(floor).minimum(self._ceiling).exp().T  # (n_mels, t)
        tiny = torch.finfo(torch.float32).tiny
        shares = self._filters / self._filters.sum(1, keepdim=True).clamp_min(tiny)
        spectrum = shares @ (energies / self._filters.sum(0)[:, None].clamp_min(tiny))
        for _ in range(UNMIX_STEPS):
            spectrum = spectrum * (shares @ (energies / (self._filters.T @ spectrum).clamp_min(tiny)))
        return spectrum if self.recipe.power == 1.0 else spectrum.sqrt()

    def stream(self, mels: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        raise UserError(
            "Griffin-Lim cannot stream, because every sample depends on all frames: give a HiFi-GAN checkpoint"
        )
